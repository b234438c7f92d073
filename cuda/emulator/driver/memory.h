/// Device memory as the driver accounts for it: allocations in call order and in stream order,
/// pools with what they keep, a limit. The bytes themselves are the runtime's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace lowrank::emu::driver {

struct Pool {
  size_t threshold = 0;  // CU_MEMPOOL_ATTR_RELEASE_THRESHOLD
  size_t max_bytes = 0;  // 0: none
  size_t used = 0;
  size_t used_high = 0;
  size_t reserved = 0;  // used, and kept for later allocations
  size_t reserved_high = 0;
};
using PoolPtr = std::shared_ptr<Pool>;

struct Allocation {
  unsigned char* data = nullptr;
  size_t bytes = 0;    // as asked for
  size_t counted = 0;  // as accounted for
  PoolPtr pool;        // null: cuMemAlloc
  bool freed = false;  // in call order: a free was accepted
  bool live = false;   // in stream order: the allocation was reached, the free was not
};
using AllocationPtr = std::shared_ptr<Allocation>;

/// The memory of one device.
class Memory {
 public:
  explicit Memory(size_t limit_bytes) : limit_(limit_bytes) {}

  /// A CUresult. In check mode the pages stay closed until Begin().
  int Allocate(size_t bytes, const PoolPtr& pool, AllocationPtr* allocation);
  /// The stream has reached the allocation.
  void Begin(const AllocationPtr& allocation);
  /// A free was asked for. False where one was before.
  bool AcceptFree(const AllocationPtr& allocation);
  /// The stream has reached the free. The runtime closes the pages and uses others first, so that a
  /// later touch is a fault; Describe() remembers what was there.
  void Finish(const AllocationPtr& allocation);
  /// The stream has reached a free inside a graph: the same, but the address stays the graph's.
  void Suspend(const AllocationPtr& allocation);
  void FreeAll();

  /// The one that starts there and was not freed, or null.
  AllocationPtr FindStart(uint64_t address);
  /// The one that holds all these bytes and was not freed, or null.
  AllocationPtr FindHolding(uint64_t address, size_t bytes);
  bool IsLive(const AllocationPtr& allocation);
  /// "inside the 4,096 bytes at ... that cuMemFreeAsync had freed", or empty.
  std::string Describe(uint64_t address);

  void AddPool(const PoolPtr& pool);
  void RemovePool(const PoolPtr& pool);
  void TrimPool(const PoolPtr& pool, size_t keep_bytes);
  /// What a synchronisation does: pools give back what is above their thresholds.
  void TrimToThresholds();
  Pool ReadPool(const PoolPtr& pool);
  void SetThreshold(const PoolPtr& pool, uint64_t bytes);

  size_t limit() const { return limit_; }
  size_t free_bytes();

 private:
  /// Freed allocations that are remembered, the youngest ones.
  static constexpr size_t kRemembered = 1024;

  size_t ReservedLocked() const;

  const size_t limit_;
  std::mutex mutex_;
  std::map<uint64_t, AllocationPtr> allocations_;  // by address, until finished
  std::vector<PoolPtr> pools_;
  size_t direct_ = 0;  // cuMemAlloc
  std::deque<AllocationPtr> freed_;
};

}  // namespace lowrank::emu::driver
