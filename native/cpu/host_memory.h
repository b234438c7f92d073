/// Memory of a host device: 64-byte aligned blocks, exact counters, and a small cache of freed big
/// blocks, because the page faults of a fresh 16 MB result cost as much as a tenth of its matmul.
#pragma once

#include <cstddef>
#include <map>
#include <mutex>

#include "native/core/backend.h"

namespace lowrank::cpu {

class HostMemory {
 public:
  /// Null where the machine has no more, after the cache was given back.
  void* Allocate(size_t bytes);
  void Free(void* data, size_t bytes);
  MemoryUsage usage() const;
  void ResetPeak();

 private:
  void* TakeCached(size_t rounded);
  void DropCache();

  mutable std::mutex mutex_;
  MemoryUsage usage_;
  std::multimap<size_t, void*> cache_;  // by rounded size
  size_t cached_bytes_ = 0;
};

}  // namespace lowrank::cpu
