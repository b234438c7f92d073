/// Memory of a host device: 64-byte aligned blocks, exact counters, and a cache of freed blocks,
/// because the page faults of a new 16 MB result cost a tenth of its matmul. The most recently
/// freed blocks stay: a freed dense weight makes room for activations. Live and cached blocks
/// together never take more than the live blocks took at once, or 64 MB more than they take now,
/// and the cached ones at most four times the live ones: a training step finds its blocks of the
/// step before, and what a disposed model leaves goes back to the system.
#pragma once

#include <cstddef>
#include <list>
#include <map>
#include <mutex>
#include <string>

#include "native/core/runtime/backend.h"
#include "native/core/runtime/memory_budget.h"

namespace lowrank::cpu {

/// Huge pages save TLB misses if a block covers several of them.
constexpr size_t kHugePage = size_t{2} << 20;

class HostMemory {
 public:
  /// Fails with kMemoryBudget, and with kOom if the machine has no more memory, even after the
  /// cache was emptied.
  Status Allocate(const std::string& device, size_t bytes, void** data);
  void Free(void* data, size_t bytes);
  MemoryUsage usage() const;
  void ResetPeak();
  int64_t budget() const;
  void SetBudget(int64_t bytes);
  /// Keeps it whole in a forked child. It must never be destroyed.
  void HoldAcrossForks() { lowrank::HoldAcrossForks(&mutex_); }

 private:
  struct Cached {
    void* data;
    size_t rounded;
  };
  using Age = std::list<Cached>::iterator;

  void* TakeCached(size_t rounded);
  bool Keep(void* data, size_t rounded);
  size_t Limit() const;
  void DropOldest();

  mutable std::mutex mutex_;
  MemoryUsage usage_;
  int64_t budget_ = MemoryBudgetFromEnvironment();
  std::list<Cached> cached_;            // oldest first
  std::multimap<size_t, Age> by_size_;  // by rounded size; blocks of one size oldest first
  size_t cached_bytes_ = 0;
  size_t live_rounded_ = 0;
  size_t most_rounded_ = 0;  // of live_rounded_, ever
};

}  // namespace lowrank::cpu
