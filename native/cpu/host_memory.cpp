#include "native/cpu/host_memory.h"

#include <cstdlib>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace lowrank::cpu {
namespace {

constexpr size_t kAlignment = 64;
// Smaller blocks come from malloc's own bins without a page fault.
constexpr size_t kCacheFrom = size_t{256} << 10;
// What may stay cached; beyond it a freed block goes back to the system.
constexpr size_t kCacheLimit = size_t{64} << 20;
// Huge pages save TLB misses where a block covers several of them.
constexpr size_t kHugePage = size_t{2} << 20;

size_t Rounded(size_t bytes) {
  const size_t unit = bytes >= 2 * kHugePage ? kHugePage : kAlignment;
  return (bytes + unit - 1) / unit * unit;
}

}  // namespace

void* HostMemory::TakeCached(size_t rounded) {
  const auto found = cache_.find(rounded);
  if (found == cache_.end()) return nullptr;
  void* data = found->second;
  cache_.erase(found);
  cached_bytes_ -= rounded;
  return data;
}

void HostMemory::DropCache() {
  for (const auto& entry : cache_) std::free(entry.second);
  cache_.clear();
  cached_bytes_ = 0;
}

void* HostMemory::Allocate(size_t bytes) {
  const size_t rounded = Rounded(bytes == 0 ? 1 : bytes);
  if (rounded < bytes) return nullptr;
  std::lock_guard<std::mutex> lock(mutex_);
  void* data = TakeCached(rounded);
  if (data == nullptr) {
    const size_t alignment = rounded >= 2 * kHugePage ? kHugePage : kAlignment;
    data = std::aligned_alloc(alignment, rounded);
    if (data == nullptr && !cache_.empty()) {
      DropCache();
      data = std::aligned_alloc(alignment, rounded);
    }
    if (data == nullptr) return nullptr;
#if defined(__linux__)
    if (alignment == kHugePage) madvise(data, rounded, MADV_HUGEPAGE);
#endif
  }
  usage_.live_bytes += static_cast<int64_t>(bytes);
  usage_.live_tensors += 1;
  if (usage_.live_bytes > usage_.peak_bytes) usage_.peak_bytes = usage_.live_bytes;
  return data;
}

void HostMemory::Free(void* data, size_t bytes) {
  const size_t rounded = Rounded(bytes == 0 ? 1 : bytes);
  std::lock_guard<std::mutex> lock(mutex_);
  usage_.live_bytes -= static_cast<int64_t>(bytes);
  usage_.live_tensors -= 1;
  if (rounded >= kCacheFrom && cached_bytes_ + rounded <= kCacheLimit) {
    // Called from destructors: where the entry finds no memory, the block is given back instead.
    try {
      cache_.emplace(rounded, data);
      cached_bytes_ += rounded;
      return;
    } catch (const std::bad_alloc&) {
    }
  }
  std::free(data);
}

MemoryUsage HostMemory::usage() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return usage_;
}

void HostMemory::ResetPeak() {
  std::lock_guard<std::mutex> lock(mutex_);
  usage_.peak_bytes = usage_.live_bytes;
}

}  // namespace lowrank::cpu
