/// The interface of a device: own memory, run descriptors in order, and report completion.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "native/core/ops/explain.h"
#include "native/core/ops/ops.h"
#include "native/core/runtime/fork.h"
#include "native/core/status.h"

namespace lowrank {

class Backend;

/// The outcome of an op that can only be judged after it has run, on a device that runs
/// asynchronously. Open until Settle(); an open one counts as good.
class Verdict {
 public:
  void Settle(const Status& status);
  bool settled() const { return settled_.load(std::memory_order_acquire); }
  /// OK while open.
  Status status() const;

 private:
  std::atomic<bool> settled_{false};
  Status status_;  // written before settled_
};
using VerdictPtr = std::shared_ptr<const Verdict>;

/// One allocation on one device, shared by JavaScript handles and queued ops, and freed with its
/// last reference. A failed op stores its Status here, and every op that reads it fails with the
/// same Status, so a mistake shows at the first read instead of as wrong numbers.
class Storage {
 public:
  Storage(Backend* backend, void* data, size_t bytes)
      : backend_(backend), data_(data), bytes_(bytes) {}
  /// Foreign memory: it is not counted, and `release` is called (from any thread) instead of
  /// freeing it.
  static std::shared_ptr<Storage> Foreign(Backend* backend, void* data, size_t bytes,
                                          std::function<void()> release);
  ~Storage();
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;

  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  Backend* backend() const { return backend_; }

  /// Counts the handles that the caller has. Without one, the memory only waits for queued ops.
  void AddHandle() { handles_.fetch_add(1, std::memory_order_relaxed); }
  void DropHandle();
  int handles() const { return handles_.load(std::memory_order_relaxed); }

  void Poison(const Status& status);
  void ClearPoison();
  Status poison() const;
  /// A possible future poison: the contents depend on these verdicts.
  void DependOn(const std::vector<VerdictPtr>& verdicts);
  /// The verdicts that are not settled as good. They include those settled as bad, which may have
  /// been open when the reader called poison().
  std::vector<VerdictPtr> OpenVerdicts() const;

 private:
  Backend* backend_;
  void* data_;
  size_t bytes_;
  std::function<void()> release_;
  std::atomic<int> handles_{0};
  std::thread::id waiter_;            // dropped the last handle while queued ops may hold it
  std::atomic<bool> suspect_{false};  // does what mutex_ guards hold anything?
  mutable std::mutex mutex_;
  Status status_;
  std::vector<VerdictPtr> verdicts_;
};
using StoragePtr = std::shared_ptr<Storage>;

/// Set when the environment that requested the work goes away. Kernels poll it once per tile.
class CancelToken {
 public:
  void Cancel() { cancelled_.store(true, std::memory_order_relaxed); }
  bool cancelled() const { return cancelled_.load(std::memory_order_relaxed); }

  /// Counts work of this token that is queued or running.
  void Begin();
  void End();
  /// Blocks until none is left. Work that was in flight at a fork belongs to the parent.
  void WaitIdle();

 private:
  std::atomic<bool> cancelled_{false};
  std::mutex mutex_;
  std::condition_variable idle_;
  int64_t in_flight_ = 0;
  ForkMark counted_in_;  // the process of in_flight_
};
using CancelPtr = std::shared_ptr<CancelToken>;

/// The references that a queued op holds until it has run.
struct OpRefs {
  std::vector<StoragePtr> inputs;
  std::vector<StoragePtr> outputs;
  CancelPtr cancel;
  std::shared_ptr<const void> tables = nullptr;  // host memory that the descriptor points into
};

struct MemoryUsage {
  int64_t live_bytes = 0;
  int64_t peak_bytes = 0;
  int64_t live_tensors = 0;
};

struct DeviceInfo {
  std::string device;  // the public name: "cpu"
  bool available = false;
  std::string reason;  // why it is not available, in words
  std::string name;
  std::string isa;                       // of a host device
  std::vector<std::string> better_isas;  // not used, with the reasons
  int sm = 0;                            // of a CUDA device: compute capability, major · 10 + minor
  std::string driver;                    // of a CUDA device: "CUDA 13.0"
  std::vector<std::string> features;
  int64_t memory_bytes = 0;
};

/// Bytes on the host between two devices, or on the way to JavaScript.
using DoneFn = std::function<void(const Status&)>;

/// The ops that one thread enqueued between Backend::BeginRecording and End(): not run, but written
/// down as a graph, which a device runs again and again without the host.
class Recording {
 public:
  virtual ~Recording() = default;
  /// On the thread that began it. Fails with the first op that could not be recorded; nothing that
  /// existed before was written or poisoned. `discard`: the caller does not want the graph.
  virtual Status End(bool discard) = 0;
  /// Queues one run. Fails with kDisposed if nobody has a handle any more of memory from outside
  /// that the ops use.
  virtual Status Replay(CancelPtr cancel) = 0;
  /// Launches of kernels in a run.
  virtual int64_t launches() const = 0;
};
using RecordingPtr = std::shared_ptr<Recording>;

class Backend {
 public:
  virtual ~Backend() = default;

  /// The public name: "cpu".
  virtual const std::string& name() const = 0;
  /// Cheap: checks whether the device exists, and starts nothing.
  virtual DeviceInfo Info() const = 0;
  /// Why nothing can run here now. A device may exist and yet be lost to an earlier fault.
  virtual Status Ready() const = 0;
  /// Makes it ready to compute, as its first use would. If it fails, the Status says why.
  virtual Status Start() { return Ready(); }
  virtual MemoryUsage Memory() const = 0;
  virtual void ResetPeak() = 0;
  /// The most bytes that may be live from here on; kNoMemoryBudget: no limit.
  virtual void SetMemoryBudget(int64_t bytes) = 0;

  /// Uninitialised memory, 64-byte aligned. Fails with kOom or kMemoryBudget.
  virtual Status Allocate(size_t bytes, StoragePtr* storage) = 0;
  virtual void Free(void* data, size_t bytes) = 0;
  /// Memory whose last handle `waiter` dropped begins to wait for queued ops (bytes > 0), or has
  /// been freed (< 0).
  virtual void CountWaiting(std::thread::id waiter, int64_t bytes) { (void)waiter, (void)bytes; }
  /// May the host touch Storage::data() while no op uses it?
  virtual bool HostAddressable() const = 0;
  /// The caller's memory as a storage: host memory, or a pointer that the device understands.
  /// `release` is called from any thread once nothing uses it; it is dropped if this fails.
  virtual Status Wrap(void* data, size_t bytes, bool host_memory, std::function<void()> release,
                      StoragePtr* storage) = 0;

  /// Ordered with the ops; `source` runs on the queue and fills the bytes.
  virtual Status Write(StoragePtr target, std::function<Status(void* data)> source,
                       CancelPtr cancel) = 0;
  /// Ordered with the ops. `sink` runs on the queue and takes the bytes; `done` follows, also on
  /// failure and cancellation.
  virtual Status Read(StoragePtr source, std::function<Status(const void* data)> sink, DoneFn done,
                      CancelPtr cancel) = 0;
  /// Calls `done` once everything queued earlier has run.
  virtual Status Synchronize(DoneFn done, CancelPtr cancel) = 0;
  /// Removes queued work of this token from the queue, but not what is running. Each `done` gets
  /// kCancelled before this returns. Never throws.
  virtual void DropQueued(const CancelToken* cancel) = 0;

  /// Issues later ops to a stream of the caller (null: back to the device's own), ordered after
  /// earlier queued work. kUnsupported if the device has no streams.
  virtual Status UseStream(void* stream, CancelPtr cancel) = 0;
  /// Calls `done` once everything queued earlier was submitted to the device, which may still run
  /// it.
  virtual Status Flush(DoneFn done, CancelPtr cancel) = 0;
  /// Bytes for intermediate results of ops, per stream; grows with the ops.
  virtual int64_t WorkspaceBytes() const = 0;
  /// Grows it at once, in queue order, so that no later op of that size has to.
  virtual Status ReserveWorkspace(int64_t bytes, DoneFn done, CancelPtr cancel) = 0;

  /// From here to Recording::End() the ops of this thread are recorded. Their outputs, and what
  /// else the thread allocates, has memory of the recording, which stays in place for all its runs.
  virtual Status BeginRecording(RecordingPtr* recording);
  /// Kernels and graphs that were launched so far.
  virtual int64_t Launches() const { return 0; }

  /// Which kernels a call would run here.
  virtual Status Explain(const CallShape& shape, Explanation* explanation) const = 0;

#define LOWRANK_DECLARE_ENQUEUE(Name, member) \
  virtual Status Enqueue(const Name##Op& op, OpRefs refs) = 0;
  LOWRANK_FOR_EACH_OP(LOWRANK_DECLARE_ENQUEUE)
#undef LOWRANK_DECLARE_ENQUEUE

  /// Why RunNow could not run here now. A host device also runs in a forked child.
  virtual Status ReadyNow() const { return Ready(); }

  /// Runs an op on memory of the caller, which holds it until this returns. Earlier queued work
  /// comes first. A host device computes on the calling thread, as worker 0 of its pool, and
  /// `stream` is null. A device with streams returns once the outputs are written, or with
  /// a stream of the caller once the work was submitted to it. Any thread may call, also at once.
#define LOWRANK_DECLARE_RUN_NOW(Name, member) \
  virtual Status RunNow(const Name##Op& op, void* stream) = 0;
  LOWRANK_FOR_EACH_OP(LOWRANK_DECLARE_RUN_NOW)
#undef LOWRANK_DECLARE_RUN_NOW
};

}  // namespace lowrank
