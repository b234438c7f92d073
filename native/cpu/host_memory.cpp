#include "native/cpu/host_memory.h"

#include <cstdint>
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

// Blocks this small are cut from malloc's own, which costs a fifth of aligned_alloc; the address of
// the whole stands before the block.
constexpr size_t kCutUpTo = 960;

#if defined(__SANITIZE_ADDRESS__)
constexpr bool kExact = true;  // a byte too far must be seen: neither rounding nor reuse
#else
constexpr bool kExact = false;
#endif

size_t Rounded(size_t bytes) {
  const size_t unit = bytes >= 2 * kHugePage ? kHugePage : kAlignment;
  return (bytes + unit - 1) / unit * unit;
}

void* AllocateBlock(size_t bytes, size_t rounded) {
  void* data = nullptr;
  if (kExact)
    return posix_memalign(&data, kAlignment, bytes == 0 ? 1 : bytes) == 0 ? data : nullptr;
  if (rounded <= kCutUpTo) {
    void* whole = std::malloc(rounded + kAlignment);
    if (whole == nullptr) return nullptr;
    const uintptr_t begin = (reinterpret_cast<uintptr_t>(whole) + kAlignment) & ~(kAlignment - 1);
    data = reinterpret_cast<void*>(begin);
    static_cast<void**>(data)[-1] = whole;
    return data;
  }
  const size_t alignment = rounded >= 2 * kHugePage ? kHugePage : kAlignment;
  data = std::aligned_alloc(alignment, rounded);
#if defined(__linux__)
  if (data != nullptr && alignment == kHugePage) madvise(data, rounded, MADV_HUGEPAGE);
#endif
  return data;
}

void FreeBlock(void* data, size_t rounded) {
  std::free(!kExact && rounded <= kCutUpTo ? static_cast<void**>(data)[-1] : data);
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
  for (const auto& entry : cache_) FreeBlock(entry.second, entry.first);
  cache_.clear();
  cached_bytes_ = 0;
}

void* HostMemory::Allocate(size_t bytes) {
  const size_t rounded = Rounded(bytes == 0 ? 1 : bytes);
  if (rounded < bytes) return nullptr;
  std::lock_guard<std::mutex> lock(mutex_);
  void* data = TakeCached(rounded);
  if (data == nullptr) {
    data = AllocateBlock(bytes, rounded);
    if (data == nullptr && !cache_.empty()) {
      DropCache();
      data = AllocateBlock(bytes, rounded);
    }
    if (data == nullptr) return nullptr;
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
  bool cached = !kExact && rounded >= kCacheFrom && cached_bytes_ + rounded <= kCacheLimit;
  if (cached) {
    try {
      cache_.emplace(rounded, data);
      cached_bytes_ += rounded;
    } catch (const std::bad_alloc&) {
      // Called from destructors, so the block is given back instead.
      cached = false;
    }
  }
  if (!cached) FreeBlock(data, rounded);
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
