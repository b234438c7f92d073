/// Page-locked host memory for copies to and from the device, kept for reuse, and the caller's host
/// memory that is mapped for the device.
#pragma once

#include <atomic>
#include <condition_variable>
#include <map>
#include <mutex>
#include <vector>

#include "native/cuda/driver/context.h"

namespace lowrank::cuda {

/// A block on loan. A plain struct: its holder returns it with Staging::Release.
struct StagingBlock {
  void* data = nullptr;
  size_t bytes = 0;     // of the whole block
  bool pinned = false;  // else ordinary memory, if larger than kPinnedLimit
};

class Staging {
 public:
  /// Locking pages costs more than a copy. Above this size ordinary memory is used, which the
  /// driver copies through its own buffer.
  static constexpr size_t kPinnedLimit = size_t{64} << 20;
  /// While this much is on loan, further requests wait for a copy to end.
  static constexpr size_t kLoanLimit = size_t{256} << 20;

  explicit Staging(Context* context) : context_(*context) {}
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  /// Issuing thread.
  Status Acquire(size_t bytes, StagingBlock* block);
  /// Any thread, once no copy uses it.
  void Release(StagingBlock block);
  /// The same if a copy may still use it, on a thread where the context is current: waits for the
  /// stream, and never releases the block if even the wait fails.
  void Retire(StagingBlock block, CUstream stream);

 private:
  /// Kept blocks beyond this are returned to the system.
  static constexpr size_t kKeepLimit = size_t{128} << 20;

  Context& context_;
  std::mutex mutex_;
  std::condition_variable returned_;
  std::multimap<size_t, void*> kept_;  // by size
  size_t kept_bytes_ = 0;
  size_t on_loan_bytes_ = 0;
};

/// Host memory that is mapped for the device, by pages: two of the caller's arrays may share a
/// page, and a page can be registered only once.
class HostPages {
 public:
  explicit HostPages(Context* context) : context_(*context) {}
  HostPages(const HostPages&) = delete;
  HostPages& operator=(const HostPages&) = delete;

  /// On a thread where the context is current, like Unmap. `device` receives the device's address.
  Status Map(void* data, size_t bytes, CUdeviceptr* device);
  void Unmap(void* data, size_t bytes);
  /// Whether it is in mapped memory. Cheap while none is mapped.
  bool Holds(const void* data) const;

 private:
  struct Run {
    uintptr_t end = 0;
    int64_t users = 0;  // 0: nobody uses it, but the driver refused to unregister it
  };

  Status Register(uintptr_t begin, uintptr_t end);
  Status Unregister(std::map<uintptr_t, Run>::iterator run);
  void Leave(uintptr_t begin, uintptr_t end);

  Context& context_;
  mutable std::mutex mutex_;
  std::map<uintptr_t, Run> runs_;  // by first byte; disjoint
  std::atomic<size_t> count_{0};
};

}  // namespace lowrank::cuda
