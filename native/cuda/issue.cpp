/// What the queue's thread does with an entry: plan, launch, copy, and leave a completion.
#include <cstdlib>
#include <cstring>
#include <new>
#include <string>
#include <utility>

#include "native/core/runtime/trace.h"
#include "native/cuda/backend.h"
#include "native/cuda/plans/plan_planes.h"

namespace lowrank::cuda {
namespace {

CUdeviceptr Pointer(const void* data) { return reinterpret_cast<uintptr_t>(data); }

/// Outputs of an op depend on what its inputs depend on.
void InheritVerdicts(const OpRefs& refs) {
  for (const StoragePtr& input : refs.inputs) {
    const std::vector<VerdictPtr> open = input->OpenVerdicts();
    if (open.empty()) continue;
    for (const StoragePtr& output : refs.outputs) output->DependOn(open);
  }
}

/// Waits for every op, so that a fault is reported for the op that caused it.
bool SynchronousOps() {
  static const bool asked = [] {
    const char* value = std::getenv("LOWRANK_CUDA_SYNC");
    return value != nullptr && value[0] != '\0' && std::strcmp(value, "0") != 0;
  }();
  return asked;
}

/// Compute::kInt8 exists for rowwise weights only.
Status CheckInt8(const char* op, const std::string& device, Compute compute, const WeightView& w) {
  if (compute == Compute::kExact || w.quant.rowwise) return Status();
  return Refuse(Code::kUnsupported, op, "compute",
                std::string("exact for ") + w.quant.format->name + " on device " + device,
                "int8, which this device has for rowwise int8 only (cpu and reference have both)");
}

Status CheckInt8(const MatmulOp& op, const std::string& device) {
  return CheckInt8(op.kName, device, op.compute, op.w);
}
Status CheckInt8(const LoraForwardOp& op, const std::string& device) {
  return CheckInt8(op.kName, device, op.compute, op.w);
}
Status CheckInt8(const LoraExpandOp& op, const std::string& device) {
  return CheckInt8(op.kName, device, op.compute, op.w);
}
Status CheckInt8(const GroupedForwardOp& op, const std::string& device) {
  return CheckInt8(op.kName, device, op.compute, op.w);
}
Status CheckInt8(const LoraForwardManyOp& op, const std::string& device) {
  for (int64_t i = 0; i < op.count; ++i) {
    LOWRANK_RETURN_IF_ERROR(CheckInt8(op.kName, device, op.parts[i].compute, op.parts[i].w));
  }
  return Status();
}
Status CheckInt8(const LoraForwardSwigluOp& op, const std::string& device) {
  LOWRANK_RETURN_IF_ERROR(CheckInt8(op.kName, device, op.gate.compute, op.gate.w));
  return CheckInt8(op.kName, device, op.up.compute, op.up.w);
}
template <typename Op>
Status CheckInt8(const Op&, const std::string&) {
  return Status();
}

}  // namespace

#define LOWRANK_DEFINE_ENQUEUE(Name, member)                     \
  Status CudaBackend::Enqueue(const Name##Op& op, OpRefs refs) { \
    return Submit(op, std::move(refs));                          \
  }
LOWRANK_FOR_EACH_OP(LOWRANK_DEFINE_ENQUEUE)
#undef LOWRANK_DEFINE_ENQUEUE

#define LOWRANK_DEFINE_RUN_NOW(Name, member) \
  Status CudaBackend::RunNow(const Name##Op& op, void* stream) { return SubmitAndWait(op, stream); }
LOWRANK_FOR_EACH_OP(LOWRANK_DEFINE_RUN_NOW)
#undef LOWRANK_DEFINE_RUN_NOW

template <typename Op>
Status CudaBackend::SubmitAndWait(const Op& op, void* stream) {
  // A failure on the queue poisons the outputs: this one stands for all.
  const StoragePtr result = Storage::Foreign(this, nullptr, 0, [] {});
  Outcome outcome;
  {
    const std::lock_guard<std::mutex> lock(now_mutex_);
    if (stream != nullptr) LOWRANK_RETURN_IF_ERROR(UseStream(stream, nullptr));
    Status queued = Enqueue(op, OpRefs{{}, {result}, nullptr});
    if (stream != nullptr) {
      const Status back = UseStream(nullptr, nullptr);
      if (queued.ok()) queued = back;
    }
    LOWRANK_RETURN_IF_ERROR(queued);
    LOWRANK_RETURN_IF_ERROR(stream == nullptr ? Synchronize(outcome.Done(), nullptr)
                                              : Flush(outcome.Done(), nullptr));
  }
  LOWRANK_RETURN_IF_ERROR(outcome.Get());
  return result->poison();
}

template <typename Op>
Status CudaBackend::Submit(const Op& op, OpRefs refs) {
  LOWRANK_RETURN_IF_ERROR(op.Check());
  LOWRANK_RETURN_IF_ERROR(CheckInt8(op, device_));
  LOWRANK_RETURN_IF_ERROR(EnsureStarted());
  if (const auto recording = RecordingHere(); recording != nullptr) {
    // Host tables that the descriptor points into stay with the refs.
    return recording->Push(Op::kName, std::move(refs),
                           [this, op](GraphRecording* into) { return RecordOp(op, into); });
  }
  Task task;
  task.refs = std::move(refs);
  task.run = [this, op](const OpRefs& held) { return Issue(op, held); };
  return engine_.load(std::memory_order_acquire)->queue.Push(std::move(task));
}

template <typename Op, typename Grow>
Status CudaBackend::MakePlanIn(const Op& op, void* base, size_t have_bytes, const Grow& grow) {
  const DeviceLimits& limits = engine_.load(std::memory_order_acquire)->context.limits();
  Workspace workspace(base);
  plan_.Clear();
  LOWRANK_RETURN_IF_ERROR(MakeWholePlan(op, limits, &workspace, &plan_));
  if (workspace.bytes() <= have_bytes) return Status();
  LOWRANK_RETURN_IF_ERROR(grow(workspace.bytes(), &base));
  Workspace grown(base);
  plan_.Clear();
  return MakeWholePlan(op, limits, &grown, &plan_);
}

template <typename Op>
Status CudaBackend::RecordOp(const Op& op, GraphRecording* recording) {
  LOWRANK_RETURN_IF_ERROR(CheckAlive());
  LOWRANK_RETURN_IF_ERROR(
      MakePlanIn(op, recording->scratch(), recording->scratch_bytes(),
                 [&](size_t bytes, void** base) { return recording->GrowScratch(bytes, base); }));
  if (plan_.steps.empty()) return Status();
  Context& context = engine_.load(std::memory_order_acquire)->context;
  if (!plan_.upload.empty()) {
    return Status(Code::kUnsupported, "its table of adapters is copied from the host");
  }
  if (plan_.first_non_finite != nullptr) {
    LOWRANK_RETURN_IF_ERROR(
        context.Check(context.driver().cuMemsetD8Async(Pointer(plan_.first_non_finite), 0x7f,
                                                       sizeof(int64_t), recording->stream()),
                      "cuMemsetD8Async"));
  }
  return context.Launch(plan_.steps, recording->stream());
}

template <typename Op>
Status CudaBackend::Issue(const Op& op, const OpRefs& refs) {
  LOWRANK_RETURN_IF_ERROR(CheckAlive());
  Streams& streams = engine_.load(std::memory_order_acquire)->streams;
  void* base = nullptr;
  const size_t have_bytes = streams.WorkspaceHere(&base);
  LOWRANK_RETURN_IF_ERROR(MakePlanIn(op, base, have_bytes, [&](size_t bytes, void** grown) {
    return streams.Workspace(bytes, grown);
  }));
  InheritVerdicts(refs);
  if (plan_.steps.empty()) return Status();
  engine_.load(std::memory_order_acquire)->context.ops().Add(op);
  return IssuePlan(refs, TraceEnabled() ? op.Describe() : std::string());
}

Status CudaBackend::IssuePlan(const OpRefs& refs, std::string description) {
  Engine& engine = *engine_.load(std::memory_order_acquire);
  bool capturing = false;
  LOWRANK_RETURN_IF_ERROR(engine.streams.IsCapturing(&capturing));
  // Captured work runs later and more than once: none of its events can be waited for.
  std::unique_ptr<Completion> after;
  if (!capturing && NeedsCompletion(refs)) {
    after = std::make_unique<Completion>();
    after->description = std::move(description);
    for (const auto* list : {&refs.inputs, &refs.outputs}) {
      for (const StoragePtr& storage : *list) {
        if (engine.pages.Holds(storage->data())) after->keep.push_back(storage);
      }
    }
    if (plan_.first_non_finite != nullptr) {
      after->verdict = std::make_shared<Verdict>();
      after->finite_in_f16 = plan_.finite_in_f16;
      after->documents_op = plan_.documents_op;
      after->document_rows = plan_.document_rows;
      for (const StoragePtr& output : refs.outputs) output->DependOn({after->verdict});
    }
  }
  Status status = engine.streams.PrepareOp();
  if (status.ok()) status = RunPlan(after.get());
  if (status.ok() && after != nullptr) status = Record(after.get());
  if (status.ok() && SynchronousOps() && !capturing) {
    status =
        engine.context.Check(engine.context.driver().cuStreamSynchronize(engine.streams.current()),
                             "cuStreamSynchronize");
  }
  if (!status.ok()) {
    if (after != nullptr && after->verdict != nullptr) after->verdict->Settle(status);
    engine.completions.Abandon(std::move(after));
    return status;
  }
  if (after == nullptr) return Status();
  if (refs.cancel && !after->keep.empty()) {
    // The caller's memory is freed with its environment, which therefore waits.
    refs.cancel->Begin();
    after->cancel = refs.cancel;
  }
  engine.completions.Push(std::move(after));
  return Status();
}

bool CudaBackend::NeedsCompletion(const OpRefs& refs) const {
  if (TraceEnabled() || plan_.first_non_finite != nullptr || !plan_.upload.empty()) return true;
  const HostPages& pages = engine_.load(std::memory_order_acquire)->pages;
  for (const auto* list : {&refs.inputs, &refs.outputs}) {
    for (const StoragePtr& storage : *list) {
      if (pages.Holds(storage->data())) return true;
    }
  }
  return false;
}

Status CudaBackend::RunPlan(Completion* after) {
  Engine& engine = *engine_.load(std::memory_order_acquire);
  Context& context = engine.context;
  const Driver& driver = context.driver();
  const CUstream stream = engine.streams.current();
  if (after != nullptr) after->stream = stream;
  const bool trace = after != nullptr && !after->description.empty();
  if (trace) {
    LOWRANK_RETURN_IF_ERROR(engine.completions.TakeEvent(true, &after->trace_begin));
    LOWRANK_RETURN_IF_ERROR(engine.completions.TakeEvent(true, &after->trace_end));
    LOWRANK_RETURN_IF_ERROR(
        context.Check(driver.cuEventRecord(after->trace_begin, stream), "cuEventRecord"));
  }
  if (plan_.first_non_finite != nullptr) {
    LOWRANK_RETURN_IF_ERROR(context.Check(
        driver.cuMemsetD8Async(Pointer(plan_.first_non_finite), 0x7f, sizeof(int64_t), stream),
        "cuMemsetD8Async"));
  }
  if (!plan_.upload.empty()) {
    if (after == nullptr) return RefuseCapture("given a table of adapters");
    const size_t bytes = plan_.upload.size();
    LOWRANK_RETURN_IF_ERROR(engine.staging.Acquire(bytes, &after->staging));
    std::memcpy(after->staging.data, plan_.upload.data(), bytes);
    LOWRANK_RETURN_IF_ERROR(context.Check(
        driver.cuMemcpyHtoDAsync_v2(Pointer(plan_.upload_to), after->staging.data, bytes, stream),
        "cuMemcpyHtoDAsync_v2"));
  }
  LOWRANK_RETURN_IF_ERROR(context.Launch(plan_.steps, stream));
  if (trace) {
    LOWRANK_RETURN_IF_ERROR(
        context.Check(driver.cuEventRecord(after->trace_end, stream), "cuEventRecord"));
  }
  if (after == nullptr || after->verdict == nullptr) return Status();
  LOWRANK_RETURN_IF_ERROR(engine.staging.Acquire(sizeof(int64_t), &after->staging));
  return context.Check(
      driver.cuMemcpyDtoHAsync_v2(after->staging.data, Pointer(plan_.first_non_finite),
                                  sizeof(int64_t), stream),
      "cuMemcpyDtoHAsync_v2");
}

Status CudaBackend::RefuseCapture(const char* what) {
  bool capturing = false;
  LOWRANK_RETURN_IF_ERROR(engine_.load(std::memory_order_acquire)->streams.IsCapturing(&capturing));
  if (!capturing) return Status();
  return Status(Code::kUnsupported, device_ + ": nothing can be " + what +
                                        " while the stream is being captured into a graph");
}

Status CudaBackend::Record(Completion* after) {
  Engine& engine = *engine_.load(std::memory_order_acquire);
  after->stream = engine.streams.current();
  after->op_number = engine.context.ops().issued();
  LOWRANK_RETURN_IF_ERROR(engine.completions.TakeEvent(false, &after->event));
  return engine.context.Check(engine.context.driver().cuEventRecord(after->event, after->stream),
                              "cuEventRecord");
}

Status CudaBackend::Write(StoragePtr target, std::function<Status(void*)> source,
                          CancelPtr cancel) {
  LOWRANK_RETURN_IF_ERROR(EnsureStarted());
  LOWRANK_RETURN_IF_ERROR(RefuseRecording("written"));
  Task task;
  task.refs = OpRefs{{}, {std::move(target)}, std::move(cancel)};
  task.run = [this, source = std::move(source)](const OpRefs& refs) {
    return IssueWrite(refs, source);
  };
  return engine_.load(std::memory_order_acquire)->queue.Push(std::move(task));
}

Status CudaBackend::IssueWrite(const OpRefs& refs, const std::function<Status(void*)>& source) {
  Engine& engine = *engine_.load(std::memory_order_acquire);
  Storage& target = *refs.outputs.front();
  LOWRANK_RETURN_IF_ERROR(CheckAlive());
  target.ClearPoison();
  if (target.bytes() == 0) return source(target.data());
  auto after = std::make_unique<Completion>();
  if (engine.pages.Holds(target.data())) after->keep = refs.outputs;
  const auto issue = [&]() -> Status {
    LOWRANK_RETURN_IF_ERROR(RefuseCapture("written"));
    LOWRANK_RETURN_IF_ERROR(engine.staging.Acquire(target.bytes(), &after->staging));
    LOWRANK_RETURN_IF_ERROR(source(after->staging.data));
    LOWRANK_RETURN_IF_ERROR(engine.streams.PrepareOp());
    after->stream = engine.streams.current();
    LOWRANK_RETURN_IF_ERROR(engine.context.Check(
        engine.context.driver().cuMemcpyHtoDAsync_v2(Pointer(target.data()), after->staging.data,
                                                     target.bytes(), engine.streams.current()),
        "cuMemcpyHtoDAsync_v2"));
    return Record(after.get());
  };
  const Status status = issue();
  if (!status.ok()) {
    engine.completions.Abandon(std::move(after));
    return status;
  }
  if (refs.cancel && !after->keep.empty()) {
    refs.cancel->Begin();
    after->cancel = refs.cancel;
  }
  engine.completions.Push(std::move(after));
  return Status();
}

Status CudaBackend::PushAwaited(OpRefs refs,
                                std::function<Status(const OpRefs&, Completion*)> issue,
                                std::function<Status(const void*)> sink, DoneFn done) {
  LOWRANK_RETURN_IF_ERROR(EnsureStarted());
  LOWRANK_RETURN_IF_ERROR(RefuseRecording("read or waited for"));
  Engine* const engine = engine_.load(std::memory_order_acquire);
  // Made here, so that running out of memory is reported to the caller; std::function must be
  // copyable.
  const auto after = std::make_shared<std::unique_ptr<Completion>>(std::make_unique<Completion>());
  (*after)->sink = std::move(sink);
  (*after)->done = std::move(done);
  const CancelPtr cancel = refs.cancel;
  Task task;
  task.refs = std::move(refs);
  task.run = [this, after, issue = std::move(issue)](const OpRefs& held) -> Status {
    LOWRANK_RETURN_IF_ERROR(CheckAlive());
    LOWRANK_RETURN_IF_ERROR(RefuseCapture("read or waited for"));
    LOWRANK_RETURN_IF_ERROR(issue(held, after->get()));
    return Record(after->get());
  };
  // Runs once the queue has dropped its references, so the counters are exact when the reader is
  // notified.
  task.done = [engine, after, cancel](const Status& status) {
    if (!status.ok()) {
      const DoneFn tell = std::exchange((*after)->done, nullptr);
      (*after)->sink = nullptr;
      engine->completions.Abandon(std::move(*after));
      if (tell) tell(status);
      return;
    }
    if (cancel && cancel->cancelled() && (*after)->keep.empty()) {
      // DropQueued may have run already.
      const DoneFn tell = std::exchange((*after)->done, nullptr);
      (*after)->sink = nullptr;
      if (tell) {
        tell(Status::Bare(Code::kCancelled, engine->context.device().c_str(),
                          "the environment is closing"));
      }
    } else if (cancel) {
      cancel->Begin();
      (*after)->cancel = cancel;
    }
    engine->completions.Push(std::move(*after));
  };
  return engine->queue.Push(std::move(task));
}

Status CudaBackend::IssueRead(const OpRefs& refs, Completion* after) {
  Engine& engine = *engine_.load(std::memory_order_acquire);
  const Storage& source = *refs.inputs.front();
  after->depends = source.OpenVerdicts();
  if (source.bytes() == 0) return Status();
  if (engine.pages.Holds(source.data())) after->keep = refs.inputs;
  LOWRANK_RETURN_IF_ERROR(engine.staging.Acquire(source.bytes(), &after->staging));
  LOWRANK_RETURN_IF_ERROR(engine.streams.PrepareOp());
  after->stream = engine.streams.current();
  return engine.context.Check(
      engine.context.driver().cuMemcpyDtoHAsync_v2(after->staging.data, Pointer(source.data()),
                                                   source.bytes(), engine.streams.current()),
      "cuMemcpyDtoHAsync_v2");
}

Status CudaBackend::Read(StoragePtr source, std::function<Status(const void*)> sink, DoneFn done,
                         CancelPtr cancel) {
  return PushAwaited(
      OpRefs{{std::move(source)}, {}, std::move(cancel)},
      [this](const OpRefs& refs, Completion* after) { return IssueRead(refs, after); },
      std::move(sink), std::move(done));
}

Status CudaBackend::Synchronize(DoneFn done, CancelPtr cancel) {
  if (engine_.load(std::memory_order_acquire) == nullptr) {
    // Nothing was ever queued.
    done(Status());
    return Status();
  }
  return PushAwaited(
      OpRefs{{}, {}, std::move(cancel)}, [](const OpRefs&, Completion*) { return Status(); },
      nullptr, std::move(done));
}

Status CudaBackend::Flush(DoneFn done, CancelPtr cancel) {
  if (engine_.load(std::memory_order_acquire) == nullptr) {
    done(Status());
    return Status();
  }
  Task task;
  task.refs.cancel = std::move(cancel);
  task.run = [this](const OpRefs&) { return CheckAlive(); };
  task.done = std::move(done);
  return engine_.load(std::memory_order_acquire)->queue.Push(std::move(task));
}

Status CudaBackend::UseStream(void* stream, CancelPtr cancel) {
  LOWRANK_RETURN_IF_ERROR(EnsureStarted());
  LOWRANK_RETURN_IF_ERROR(RefuseRecording("moved to another stream"));
  Engine* const engine = engine_.load(std::memory_order_acquire);
  Task task;
  task.refs.cancel = std::move(cancel);
  task.run = [engine, stream](const OpRefs&) {
    return engine->streams.Use(static_cast<CUstream>(stream));
  };
  return engine->queue.Push(std::move(task));
}

std::shared_ptr<GraphRecording> CudaBackend::RecordingHere() const {
  const std::lock_guard<std::mutex> lock(recording_mutex_);
  std::shared_ptr<GraphRecording> recording = recording_.lock();
  return recording != nullptr && recording->RecordsThisThread() ? recording : nullptr;
}

Status CudaBackend::RefuseRecording(const char* what) const {
  if (RecordingHere() == nullptr) return Status();
  return Status(Code::kUnsupported,
                device_ + ": nothing can be " + what + " while captureStep records a step");
}

Status CudaBackend::BeginRecording(RecordingPtr* recording) {
  LOWRANK_RETURN_IF_ERROR(EnsureStarted());
  Engine* const engine = engine_.load(std::memory_order_acquire);
  GraphRecording::Host host;
  host.backend = this;
  host.context = &engine->context;
  host.streams = &engine->streams;
  host.queue = &engine->queue;
  host.allocate = [this](size_t bytes, StoragePtr* to) { return AllocateFromPool(bytes, to); };
  host.check_alive = [this] { return CheckAlive(); };
  const auto fresh = std::make_shared<GraphRecording>(std::move(host));
  {
    const std::lock_guard<std::mutex> lock(recording_mutex_);
    const std::shared_ptr<GraphRecording> other = recording_.lock();
    if (other != nullptr && other->open()) {
      return Refuse(Code::kUnsupported, "captureStep", "device " + device_, "free to record a step",
                    "one that records another");
    }
    recording_ = fresh;
  }
  LOWRANK_RETURN_IF_ERROR(fresh->Begin(static_cast<size_t>(engine->streams.workspace_bytes())));
  *recording = fresh;
  return Status();
}

int64_t CudaBackend::Launches() const {
  const Engine* engine = engine_.load(std::memory_order_acquire);
  return engine == nullptr ? 0 : engine->context.launches();
}

Status CudaBackend::ReserveWorkspace(int64_t bytes, DoneFn done, CancelPtr cancel) {
  LOWRANK_RETURN_IF_ERROR(EnsureStarted());
  Engine* const engine = engine_.load(std::memory_order_acquire);
  Task task;
  task.refs.cancel = std::move(cancel);
  task.run = [engine, bytes](const OpRefs&) {
    return engine->streams.Reserve(static_cast<size_t>(bytes));
  };
  task.done = std::move(done);
  return engine->queue.Push(std::move(task));
}

}  // namespace lowrank::cuda
