/// A CUDA device as a Backend: `cuda` over the system's driver, `cuda-emulated` over the emulator.
///
/// Threads. The JavaScript thread only checks and pushes. The queue's thread issues: it takes
/// entries in order, plans, launches, starts copies, and drops its references to operands as soon
/// as the work is in the stream, because memory is freed in stream order too. The completion thread
/// waits for events and notifies readers. No JavaScript thread ever makes a call that waits for the
/// device, except for an allocation that would otherwise fail.
#pragma once

#include <memory>
#include <mutex>
#include <string>

#include "native/core/runtime/backend.h"
#include "native/core/runtime/memory_budget.h"
#include "native/core/runtime/queue.h"
#include "native/cuda/driver/context.h"
#include "native/cuda/streams/completion.h"
#include "native/cuda/streams/graph_recording.h"
#include "native/cuda/streams/staging.h"
#include "native/cuda/streams/streams.h"

namespace lowrank::cuda {

/// How a device is found; asked again if the answer was not final.
struct Source {
  /// Opens the driver; fails with the reason, with kOom if another attempt may succeed.
  Status (*open)(const Library** library) = nullptr;
  /// Whether it can be opened, without opening it. Null: open it to find out.
  Status (*look)() = nullptr;
  int ordinal = 0;
  bool own_kernels = false;  // the driver brings the kernels: no image is needed
};

class CudaBackend final : public Backend {
 public:
  /// Does not look for anything yet.
  CudaBackend(std::string device, const Source& source);

  const std::string& name() const override { return device_; }
  DeviceInfo Info() const override;
  Status Ready() const override;
  Status Start() override { return EnsureStarted(); }
  MemoryUsage Memory() const override;
  void ResetPeak() override;
  void SetMemoryBudget(int64_t bytes) override;

  Status Allocate(size_t bytes, StoragePtr* storage) override;
  void Free(void* data, size_t bytes) override;
  bool HostAddressable() const override { return false; }
  Status Wrap(void* data, size_t bytes, bool host_memory, std::function<void()> release,
              StoragePtr* storage) override;

  Status Write(StoragePtr target, std::function<Status(void*)> source, CancelPtr cancel) override;
  Status Read(StoragePtr source, std::function<Status(const void*)> sink, DoneFn done,
              CancelPtr cancel) override;
  Status Synchronize(DoneFn done, CancelPtr cancel) override;
  void DropQueued(const CancelToken* cancel) override;
  Status UseStream(void* stream, CancelPtr cancel) override;
  Status Flush(DoneFn done, CancelPtr cancel) override;
  int64_t WorkspaceBytes() const override;
  Status ReserveWorkspace(int64_t bytes, DoneFn done, CancelPtr cancel) override;

  Status BeginRecording(RecordingPtr* recording) override;
  int64_t Launches() const override;

  Status Explain(const CallShape& shape, Explanation* explanation) const override;

#define LOWRANK_OVERRIDE_ENQUEUE(Name, member) \
  Status Enqueue(const Name##Op& op, OpRefs refs) override;
  LOWRANK_FOR_EACH_OP(LOWRANK_OVERRIDE_ENQUEUE)
#undef LOWRANK_OVERRIDE_ENQUEUE

#define LOWRANK_OVERRIDE_RUN_NOW(Name, member) \
  Status RunNow(const Name##Op& op, void* stream) override;
  LOWRANK_FOR_EACH_OP(LOWRANK_OVERRIDE_RUN_NOW)
#undef LOWRANK_OVERRIDE_RUN_NOW

 private:
  /// Everything that exists once the device is started. Never destroyed.
  struct Engine {
    Engine(const std::string& device, const Library& library);
    Context context;
    Staging staging;
    HostPages pages;
    Streams streams;
    Completions completions;
    Queue queue;  // last: its thread uses all of the above
  };

  /// Fills found_ once it is known.
  Status Probe() const;
  Status EnsureStarted();
  Status StartEngine();
  /// Why nothing can be queued now.
  Status CheckAlive() const;

  template <typename Op>
  Status Submit(const Op& op, OpRefs refs);
  template <typename Op>
  Status SubmitAndWait(const Op& op, void* stream);
  template <typename Op>
  Status Issue(const Op& op, const OpRefs& refs);
  /// Makes plan_ in `base`, and once more in what grow(bytes, &base) gives if that is too small.
  template <typename Op, typename Grow>
  Status MakePlanIn(const Op& op, void* base, size_t have_bytes, const Grow& grow);
  template <typename Op>
  Status RecordOp(const Op& op, GraphRecording* recording);
  /// The recording of the calling thread, or null.
  std::shared_ptr<GraphRecording> RecordingHere() const;
  /// Refuses a call that cannot be part of a recording; `what` completes "nothing can be <what>
  /// while ...".
  Status RefuseRecording(const char* what) const;
  Status AllocateFromPool(size_t bytes, StoragePtr* storage);
  /// Counts memory before it is taken, so that threads cannot pass the budget together.
  Status Count(size_t bytes);
  void Uncount(size_t bytes);
  /// Issues plan_; the op is described if it is traced.
  Status IssuePlan(const OpRefs& refs, std::string description);
  Status RunPlan(Completion* after);
  Status IssueWrite(const OpRefs& refs, const std::function<Status(void*)>& source);
  Status IssueRead(const OpRefs& refs, Completion* after);
  /// Queues work that ends in a completion: `issue` starts the work, `after` calls `done` when it
  /// is over.
  Status PushAwaited(OpRefs refs, std::function<Status(const OpRefs&, Completion*)> issue,
                     std::function<Status(const void*)> sink, DoneFn done);
  /// Whether work has a completion even if no one waits: it uses the caller's memory, or the op
  /// reports how it went, or it is timed.
  bool NeedsCompletion(const OpRefs& refs) const;
  /// Refuses during a capture; `what` completes "nothing can be <what> while ...".
  Status RefuseCapture(const char* what);
  /// Records the event that `after` waits for; not while the stream is being captured.
  Status Record(Completion* after);

  const std::string device_;
  const Source source_;

  // Set by Probe.
  mutable std::mutex probe_mutex_;
  mutable bool probed_ = false;
  mutable Status probe_status_;
  mutable const Library* library_ = nullptr;
  mutable Gpu gpu_;
  mutable KernelImage image_;

  mutable std::mutex start_mutex_;
  std::unique_ptr<Engine> engine_made_;
  Status start_status_;                   // of the last final attempt
  std::atomic<Engine*> engine_{nullptr};  // null until started

  std::mutex now_mutex_;  // of calls of RunNow, each of which may change the stream

  mutable std::mutex recording_mutex_;
  std::weak_ptr<GraphRecording> recording_;  // in progress

  mutable std::mutex usage_mutex_;
  MemoryUsage usage_;
  int64_t budget_ = MemoryBudgetFromEnvironment();

  Plan plan_;  // of the issuing thread, kept for its capacity
};

}  // namespace lowrank::cuda
