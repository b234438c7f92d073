/// A device in host memory: a queue, a table of kernels, and memory. "cpu" and "reference" are two
/// instances with different tables.
#pragma once

#include <memory>
#include <mutex>
#include <thread>
#include <unordered_map>

#include "native/core/runtime/queue.h"
#include "native/cpu/host_memory.h"
#include "native/cpu/kernel_table.h"

namespace lowrank::cpu {

class HostBackend final : public Backend {
 public:
  HostBackend(DeviceInfo info, const KernelTable& kernels, int threads);

  const std::string& name() const override { return info_.device; }
  DeviceInfo Info() const override;
  Status Ready() const override;
  MemoryUsage Memory() const override;
  void ResetPeak() override;
  void SetMemoryBudget(int64_t bytes) override { memory_.SetBudget(bytes); }

  Status Allocate(size_t bytes, StoragePtr* storage) override;
  void Free(void* data, size_t bytes) override;
  void CountWaiting(std::thread::id waiter, int64_t bytes) override;
  bool HostAddressable() const override { return true; }
  Status Wrap(void* data, size_t bytes, bool host_memory, std::function<void()> release,
              StoragePtr* storage) override;

  Status Write(StoragePtr target, std::function<Status(void*)> source, CancelPtr cancel) override;
  Status Read(StoragePtr source, std::function<Status(const void*)> sink, DoneFn done,
              CancelPtr cancel) override;
  Status Synchronize(DoneFn done, CancelPtr cancel) override;
  void DropQueued(const CancelToken* cancel) override { queue_.DropQueued(cancel); }
  Status UseStream(void* stream, CancelPtr cancel) override;
  Status Flush(DoneFn done, CancelPtr cancel) override;
  int64_t WorkspaceBytes() const override { return 0; }
  Status ReserveWorkspace(int64_t bytes, DoneFn done, CancelPtr cancel) override;

  Status Explain(const CallShape& shape, Explanation* explanation) const override;

#define LOWRANK_OVERRIDE_ENQUEUE(Name, member)               \
  Status Enqueue(const Name##Op& op, OpRefs refs) override { \
    return Submit(op, std::move(refs), kernels_.member);     \
  }
  LOWRANK_FOR_EACH_OP(LOWRANK_OVERRIDE_ENQUEUE)
#undef LOWRANK_OVERRIDE_ENQUEUE

  Status ReadyNow() const override;
#define LOWRANK_OVERRIDE_RUN_NOW(Name, member)               \
  Status RunNow(const Name##Op& op, void* stream) override { \
    return RunOnThisThread(op, stream, kernels_.member);     \
  }
  LOWRANK_FOR_EACH_OP(LOWRANK_OVERRIDE_RUN_NOW)
#undef LOWRANK_OVERRIDE_RUN_NOW

  /// Takes effect for the next op; ordered with the queue.
  void SetThreads(int threads);
  int GetThreads() const { return threads_.load(std::memory_order_relaxed); }

 private:
  template <typename Op>
  Status Submit(const Op& op, OpRefs refs, Status (*kernel)(const Op&, const RunContext&));

  template <typename Op>
  Status RunOnThisThread(const Op& op, void* stream,
                         Status (*kernel)(const Op&, const RunContext&));

  /// The pool of one process, and the lock of who works with it.
  struct Crew {
    /// With `mutex`: the pool for that many threads.
    ThreadPool* PoolOf(int threads);

    const ForkMark home;
    std::mutex mutex;
    std::unique_ptr<ThreadPool> pool;
  };
  /// That of this process: a child makes its own, and the threads of the other are not there.
  Crew& CrewHere();

  /// What a thread has let go of and queued ops still hold.
  struct Waiting {
    int64_t bytes = 0;
    bool stalled = false;  // it waited as long as it may, and nothing of it was freed since
  };

  /// The count of a thread, made if need be; null without memory for it. With waiting_mutex_.
  Waiting* WaitingOf(std::thread::id waiter);
  /// Lets the queue catch up where much of this thread's memory only waits for it: a caller that
  /// runs ahead of the kernels would otherwise hold the intermediate results of all of its calls at
  /// once. A thread without such memory never waits for the kernels of another.
  void LetQueueCatchUp();

  const DeviceInfo info_;
  const KernelTable& kernels_;
  std::mutex waiting_mutex_;
  std::unordered_map<std::thread::id, Waiting> waiting_;
  std::condition_variable fewer_waiting_;
  HostMemory memory_;
  std::atomic<int> threads_;
  std::mutex crew_mutex_;
  std::atomic<Crew*> crew_;  // never destroyed
  Queue queue_;              // last: its thread uses all of the above
};

}  // namespace lowrank::cpu
