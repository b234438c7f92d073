/// Memory of a host device: 64-byte aligned blocks, exact counters, and a small cache of freed
/// blocks, because the page faults of a fresh 16 MB result cost as much as a tenth of its matmul.
/// Those that were freed last stay: a dense weight that was let go leaves room for activations.
#pragma once

#include <cstddef>
#include <list>
#include <map>
#include <mutex>

#include "native/core/runtime/backend.h"

namespace lowrank::cpu {

/// Huge pages save TLB misses where a block covers several of them.
constexpr size_t kHugePage = size_t{2} << 20;

class HostMemory {
 public:
  /// Null where the machine has no more, after the cache was given back.
  void* Allocate(size_t bytes);
  void Free(void* data, size_t bytes);
  MemoryUsage usage() const;
  void ResetPeak();

 private:
  struct Cached {
    void* data;
    size_t rounded;
  };
  using Age = std::list<Cached>::iterator;

  void* TakeCached(size_t rounded);
  bool Keep(void* data, size_t rounded);
  void DropOldest();

  mutable std::mutex mutex_;
  MemoryUsage usage_;
  std::list<Cached> cached_;            // the oldest first
  std::multimap<size_t, Age> by_size_;  // by rounded size, those of one size the oldest first
  size_t cached_bytes_ = 0;
};

}  // namespace lowrank::cpu
