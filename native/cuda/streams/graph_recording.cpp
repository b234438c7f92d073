#include "native/cuda/streams/graph_recording.h"

#include <algorithm>
#include <utility>

#include "native/core/runtime/trace.h"

namespace lowrank::cuda {
namespace {

/// A run of a graph, in the log of ops.
struct ReplayOp {
  int64_t launches = 0;
  std::string Describe() const {
    return "a captured step of " + std::to_string(launches) + " launches";
  }
};

}  // namespace

GraphRecording::GraphRecording(Host host)
    : host_(std::move(host)), memory_(std::make_shared<GraphMemory>(host_.allocate)) {}

GraphRecording::~GraphRecording() {
  if (host_.queue->home().orphaned() || !host_.context->lost().ok()) return;
  const Visit visit(host_.context);
  if (!visit.status().ok()) return;
  const Driver& driver = host_.context->driver();
  // A run that is in flight ends first: the driver frees a graph when it is over.
  if (exec_ != nullptr) driver.cuGraphExecDestroy(exec_);
  if (stream_ == nullptr) return;
  if (open_) {
    // The environment ended in the middle of a step.
    CUgraph graph = nullptr;
    driver.cuStreamEndCapture(stream_, &graph);
    if (graph != nullptr) driver.cuGraphDestroy(graph);
  }
  driver.cuStreamDestroy_v2(stream_);
}

Status GraphRecording::OnIssuer(std::function<Status()> work) {
  const auto outcome = std::make_shared<Status>();
  Task task;
  task.run = [work = std::move(work)](const OpRefs&) { return work(); };
  task.done = [self = shared_from_this(), outcome](const Status& status) {
    const std::lock_guard<std::mutex> lock(self->mutex_);
    *outcome = status;
    if (--self->pending_ == 0) self->idle_.notify_all();
  };
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    ++pending_;
  }
  if (const Status pushed = host_.queue->Push(std::move(task)); !pushed.ok()) {
    const std::lock_guard<std::mutex> lock(mutex_);
    --pending_;
    return pushed;
  }
  Drain();
  return *outcome;
}

void GraphRecording::Drain() {
  std::unique_lock<std::mutex> lock(mutex_);
  idle_.wait(lock, [this] { return pending_ == 0; });
}

Status GraphRecording::Begin(size_t scratch_bytes) {
  if (scratch_bytes != 0) {
    const Status reserved = host_.allocate(scratch_bytes, &scratch_);
    if (!reserved.ok()) open_ = false;
    LOWRANK_RETURN_IF_ERROR(reserved);
  }
  const Status status = OnIssuer([this]() -> Status {
    Context& context = *host_.context;
    LOWRANK_RETURN_IF_ERROR(host_.check_alive());
    LOWRANK_RETURN_IF_ERROR(context.Check(
        context.driver().cuStreamCreate(&stream_, CU_STREAM_NON_BLOCKING), "cuStreamCreate"));
    return context.Check(
        context.driver().cuStreamBeginCapture_v2(stream_, CU_STREAM_CAPTURE_MODE_RELAXED),
        "cuStreamBeginCapture_v2");
  });
  if (!status.ok()) open_ = false;
  return status;
}

Status GraphRecording::Allocate(size_t bytes, StoragePtr* storage) {
  Drain();
  void* data = nullptr;
  LOWRANK_RETURN_IF_ERROR(memory_->Take(bytes, &data));
  *storage = Storage::Foreign(host_.backend, data, bytes,
                              [memory = memory_, data] { memory->Give(data); });
  made_.push_back(*storage);
  return Status();
}

void GraphRecording::Note(const char* op, const OpRefs& refs) {
  const auto note = [&](const StoragePtr& storage, bool written) {
    if (storage->bytes() == 0 || memory_->Owns(storage->data())) return;
    Outer& outer = outer_[storage.get()];
    if (outer.storage == nullptr) outer = {storage, op, false, false};
    (written ? outer.written : outer.read) = true;
  };
  for (const StoragePtr& input : refs.inputs) note(input, false);
  for (const StoragePtr& output : refs.outputs) note(output, true);
}

Status GraphRecording::Push(const char* op, OpRefs refs,
                            std::function<Status(GraphRecording*)> issue) {
  Task task;
  task.refs.cancel = refs.cancel;
  // Operands are not the queue's: it would poison the outputs of an op that fails.
  task.run = [this, op, refs = std::move(refs), issue = std::move(issue)](const OpRefs&) -> Status {
    if (!failure_.ok()) return Status();
    const int64_t before = host_.context->launches();
    const Status status = issue(this);
    launches_ += host_.context->launches() - before;
    if (status.ok()) {
      Note(op, refs);
    } else {
      failure_ = Status(status.code(),
                        std::string(op) + ": cannot be captured into a graph: " + status.message());
    }
    return Status();
  };
  task.done = [self = shared_from_this()](const Status& status) {
    const std::lock_guard<std::mutex> lock(self->mutex_);
    if (!status.ok() && self->failure_.ok()) self->failure_ = status;
    if (--self->pending_ == 0) self->idle_.notify_all();
  };
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    ++pending_;
  }
  const Status pushed = host_.queue->Push(std::move(task));
  if (!pushed.ok()) {
    const std::lock_guard<std::mutex> lock(mutex_);
    --pending_;
  }
  return pushed;
}

Status GraphRecording::GrowScratch(size_t bytes, void** base) {
  StoragePtr larger;
  LOWRANK_RETURN_IF_ERROR(host_.allocate(std::max(bytes, 2 * scratch_bytes()), &larger));
  // The ops before this one keep theirs.
  if (scratch_ != nullptr) outgrown_.push_back(std::move(scratch_));
  scratch_ = std::move(larger);
  *base = scratch_->data();
  return Status();
}

Status GraphRecording::EndCapture(bool discard) {
  Context& context = *host_.context;
  const Driver& driver = context.driver();
  LOWRANK_RETURN_IF_ERROR(host_.check_alive());
  CUgraph graph = nullptr;
  Status status = context.Check(driver.cuStreamEndCapture(stream_, &graph), "cuStreamEndCapture");
  if (status.ok() && failure_.ok() && !discard) {
    status = context.Check(driver.cuGraphInstantiateWithFlags(&exec_, graph, 0),
                           "cuGraphInstantiateWithFlags");
  }
  if (graph != nullptr) driver.cuGraphDestroy(graph);
  driver.cuStreamDestroy_v2(std::exchange(stream_, nullptr));
  LOWRANK_RETURN_IF_ERROR(failure_);
  return status;
}

Status GraphRecording::End(bool discard) {
  if (!open_) return Status();
  Drain();
  open_ = false;
  const Status status = OnIssuer([this, discard] { return EndCapture(discard); });
  if (!status.ok() || discard) {
    outer_.clear();
    return status;
  }
  const Status waiting(Code::kUnsupported,
                       "captureStep: a tensor of the step must be read after a replay, got a step "
                       "that was captured and did not run yet");
  for (const std::weak_ptr<Storage>& made : made_) {
    if (StoragePtr storage = made.lock(); storage != nullptr) {
      storage->Poison(waiting);
      results_.push_back(std::move(storage));
    }
  }
  made_.clear();
  return Status();
}

Status GraphRecording::Launch(const OpRefs& refs) {
  LOWRANK_RETURN_IF_ERROR(host_.check_alive());
  bool capturing = false;
  LOWRANK_RETURN_IF_ERROR(host_.streams->IsCapturing(&capturing));
  if (capturing) {
    return Status(Code::kUnsupported,
                  host_.context->device() +
                      ": a captured step cannot be replayed into a stream that is being captured");
  }
  for (const StoragePtr& result : results_) result->ClearPoison();
  for (const StoragePtr& input : refs.inputs) {
    const std::vector<VerdictPtr> open = input->OpenVerdicts();
    if (open.empty()) continue;
    for (const StoragePtr& output : refs.outputs) output->DependOn(open);
  }
  host_.context->ops().Add(ReplayOp{launches_});
  LOWRANK_RETURN_IF_ERROR(host_.streams->PrepareOp());
  return host_.context->LaunchGraph(exec_, host_.streams->current());
}

Status GraphRecording::Replay(CancelPtr cancel) {
  if (exec_ == nullptr) {
    return Refuse(Code::kDisposed, "replay", "the step", "captured", "one without a graph");
  }
  Task task;
  for (const auto& [storage, outer] : outer_) {
    if (storage->handles() == 0) {
      return Refuse(Code::kDisposed, "replay", std::string("a tensor that ") + outer.op + " uses",
                    "live", "a disposed one");
    }
    if (outer.read) task.refs.inputs.push_back(outer.storage);
    if (outer.written) task.refs.outputs.push_back(outer.storage);
  }
  task.refs.outputs.insert(task.refs.outputs.end(), results_.begin(), results_.end());
  task.refs.cancel = std::move(cancel);
  if (TraceEnabled()) task.description = ReplayOp{launches_}.Describe();
  task.run = [self = shared_from_this()](const OpRefs& refs) { return self->Launch(refs); };
  return host_.queue->Push(std::move(task));
}

}  // namespace lowrank::cuda
