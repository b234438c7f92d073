#include "native/cpu/host_backend.h"

#include <chrono>
#include <functional>
#include <new>

#include "native/core/runtime/float_mode.h"
#include "native/core/runtime/trace.h"
#include "native/cpu/explain.h"

namespace lowrank::cpu {
namespace {

// A step of 110 M parameters needs 16 MB for the results of two layers.
constexpr int64_t kMostWaiting = int64_t{64} << 20;

}  // namespace

HostBackend::HostBackend(DeviceInfo info, const KernelTable& kernels, int threads)
    : info_(std::move(info)),
      kernels_(kernels),
      threads_(threads),
      crew_(new Crew()),
      queue_(info_.device.c_str()) {
  memory_.HoldAcrossForks();
  HoldAcrossForks(&crew_mutex_);
}

DeviceInfo HostBackend::Info() const {
  DeviceInfo info = info_;
  info.memory_bytes = WithinBudget(info.memory_bytes, memory_.budget());
  const Status here = queue_.home().Check(info_.device.c_str());
  info.available = info.available && here.ok();
  if (info.reason.empty()) info.reason = here.message();
  return info;
}

Status HostBackend::Ready() const {
  LOWRANK_RETURN_IF_ERROR(queue_.home().Check(info_.device.c_str()));
  return ReadyNow();
}

Status HostBackend::ReadyNow() const {
  if (info_.available) return Status();
  return Status(Code::kDevice,
                "device: \"" + info_.device + "\" is not available: " + info_.reason);
}

MemoryUsage HostBackend::Memory() const { return memory_.usage(); }

void HostBackend::ResetPeak() { memory_.ResetPeak(); }

void HostBackend::Free(void* data, size_t bytes) { memory_.Free(data, bytes); }

HostBackend::Waiting* HostBackend::WaitingOf(std::thread::id waiter) {
  try {
    return &waiting_[waiter];
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}

// Never throws: handles are dropped in destructors. What cannot be counted for want of memory is
// not waited for.
void HostBackend::CountWaiting(std::thread::id waiter, int64_t bytes) {
  if (queue_.home().orphaned()) return;
  if (bytes >= 0) {
    std::lock_guard<std::mutex> lock(waiting_mutex_);
    if (Waiting* const own = WaitingOf(waiter)) own->bytes += bytes;
    return;
  }
  {
    std::lock_guard<std::mutex> lock(waiting_mutex_);
    const auto entry = waiting_.find(waiter);
    if (entry == waiting_.end()) return;
    entry->second.bytes += bytes;
    entry->second.stalled = false;
    // Each waking of the caller takes a core from the kernels.
    if (entry->second.bytes > kMostWaiting / 2) return;
    if (entry->second.bytes <= 0) waiting_.erase(entry);
  }
  fewer_waiting_.notify_all();
}

void HostBackend::LetQueueCatchUp() {
  if (queue_.home().orphaned()) return;
  // The loss of a batch of an 8 B model is one op of several seconds. The caller waits for it,
  // because each further call would add to the memory that waits. The limit keeps a thread from
  // being held up forever.
  constexpr auto kLongest = std::chrono::seconds(20);
  const auto me = std::this_thread::get_id();
  std::unique_lock<std::mutex> lock(waiting_mutex_);
  const auto mine = waiting_.find(me);
  if (mine == waiting_.end() || mine->second.bytes <= kMostWaiting || mine->second.stalled) return;
  const auto fewer = [this, me] {
    const auto now = waiting_.find(me);
    return now == waiting_.end() || now->second.bytes <= kMostWaiting / 2;
  };
  if (fewer_waiting_.wait_for(lock, kLongest, fewer)) return;
  const auto now = waiting_.find(me);
  if (now != waiting_.end()) now->second.stalled = true;
}

Status HostBackend::Allocate(size_t bytes, StoragePtr* storage) {
  LetQueueCatchUp();
  void* data = nullptr;
  LOWRANK_RETURN_IF_ERROR(memory_.Allocate(info_.device, bytes, &data));
  try {
    *storage = std::make_shared<Storage>(this, data, bytes);
  } catch (const std::bad_alloc&) {
    memory_.Free(data, bytes);
    return Status(Code::kOom, info_.device + ": no memory for a tensor's handle");
  }
  return Status();
}

Status HostBackend::Wrap(void* data, size_t bytes, bool, std::function<void()> release,
                         StoragePtr* storage) {
  *storage = Storage::Foreign(this, data, bytes, std::move(release));
  return Status();
}

template <typename Op>
Status HostBackend::Submit(const Op& op, OpRefs refs,
                           Status (*kernel)(const Op&, const RunContext&)) {
  LOWRANK_RETURN_IF_ERROR(op.Check());
  Task task;
  if (TraceEnabled()) task.description = op.Describe();
  const CancelPtr cancel = refs.cancel;
  task.refs = std::move(refs);
  task.run = [this, op, kernel, cancel](const OpRefs&) -> Status {
    Crew& crew = CrewHere();
    const std::lock_guard<std::mutex> lock(crew.mutex);
    return kernel(op, RunContext{crew.PoolOf(GetThreads()), cancel.get()});
  };
  return queue_.Push(std::move(task));
}

template <typename Op>
Status HostBackend::RunOnThisThread(const Op& op, void* stream,
                                    Status (*kernel)(const Op&, const RunContext&)) {
  if (stream != nullptr) {
    return Refuse(Code::kUnsupported, Op::kName, "stream", "NULL",
                  "one, and device '" + info_.device + "' has none");
  }
  LOWRANK_RETURN_IF_ERROR(ReadyNow());
  LOWRANK_RETURN_IF_ERROR(op.Check());
  LOWRANK_RETURN_IF_ERROR(queue_.WaitForEarlier());
  Crew& crew = CrewHere();
  const auto compute = [&]() -> Status {
    const std::lock_guard<std::mutex> lock(crew.mutex);
    const ScopedFloatMode mode;
    return kernel(op, RunContext{crew.PoolOf(GetThreads()), nullptr});
  };
  return RunGuarded(info_.device.c_str(), TraceEnabled() ? op.Describe() : std::string(),
                    std::cref(compute));
}

ThreadPool* HostBackend::Crew::PoolOf(int threads) {
  if (!pool || pool->asked_threads() != threads) pool = std::make_unique<ThreadPool>(threads);
  return pool.get();
}

HostBackend::Crew& HostBackend::CrewHere() {
  Crew* crew = crew_.load(std::memory_order_acquire);
  if (!crew->home.orphaned()) return *crew;
  const std::lock_guard<std::mutex> lock(crew_mutex_);
  crew = crew_.load(std::memory_order_acquire);
  if (crew->home.orphaned()) {
    crew = new Crew();
    crew_.store(crew, std::memory_order_release);
  }
  return *crew;
}

Status HostBackend::Write(StoragePtr target, std::function<Status(void*)> source,
                          CancelPtr cancel) {
  Task task;
  Storage* storage = target.get();
  task.refs = OpRefs{{}, {std::move(target)}, std::move(cancel)};
  task.run = [storage, source = std::move(source)](const OpRefs&) -> Status {
    storage->ClearPoison();
    return source(storage->data());
  };
  return queue_.Push(std::move(task));
}

Status HostBackend::Read(StoragePtr source, std::function<Status(const void*)> sink, DoneFn done,
                         CancelPtr cancel) {
  Task task;
  Storage* storage = source.get();
  task.refs = OpRefs{{std::move(source)}, {}, std::move(cancel)};
  task.run = [storage, sink = std::move(sink)](const OpRefs&) -> Status {
    return sink(storage->data());
  };
  task.done = std::move(done);
  return queue_.Push(std::move(task));
}

Status HostBackend::Synchronize(DoneFn done, CancelPtr cancel) {
  Task task;
  task.refs.cancel = std::move(cancel);
  task.run = [](const OpRefs&) { return Status(); };
  task.done = std::move(done);
  return queue_.Push(std::move(task));
}

Status HostBackend::UseStream(void*, CancelPtr) {
  return Refuse(Code::kUnsupported, "useStream", "device", "a CUDA device",
                info_.device + ", which has no streams");
}

Status HostBackend::Flush(DoneFn done, CancelPtr cancel) {
  return Synchronize(std::move(done), std::move(cancel));
}

Status HostBackend::ReserveWorkspace(int64_t, DoneFn done, CancelPtr cancel) {
  return Synchronize(std::move(done), std::move(cancel));
}

Status HostBackend::Explain(const CallShape& shape, Explanation* explanation) const {
  if (kernels_.routes == nullptr) {
    return Refuse(Code::kUnsupported, "explain", "device", "one with a choice of kernels",
                  "'" + info_.device + "', which has plain loops");
  }
  return cpu::Explain(kernels_, GetThreads(), shape, explanation);
}

void HostBackend::SetThreads(int threads) { threads_.store(threads, std::memory_order_relaxed); }

}  // namespace lowrank::cpu
