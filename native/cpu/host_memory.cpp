#include "native/cpu/host_memory.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <iterator>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace lowrank::cpu {
namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kPage = 4096;
// The cache may always hold this much. Beyond its limit the oldest freed blocks go back to the
// system.
constexpr size_t kCacheAlways = size_t{64} << 20;
constexpr size_t kCachePerLive = 4;

// Blocks from here on are mappings of their own. malloc cuts aligned ones out of larger pieces, and
// the rests between blocks that live on never go back: a training step of 110 M parameters grew by
// 90 MB a step.
constexpr size_t kMapFrom = size_t{256} << 10;

// Blocks this small come from malloc itself, which costs a fifth of aligned_alloc. The address of
// the allocation is stored before the block. When freed, they stay in malloc's bins.
constexpr size_t kCutUpTo = 960;
// Larger blocks are cached here. Freeing one may shrink malloc's heap, so that the next allocation
// page-faults. With huge pages for malloc (GLIBC_TUNABLES) that clears 2 MiB, up to 2 ms on a
// virtual machine, in the calling thread.
constexpr size_t kCacheFrom = kCutUpTo + 1;

#if defined(__SANITIZE_ADDRESS__)
constexpr bool kExact = true;  // out-of-bounds bytes must be detected: neither rounding nor reuse
#else
constexpr bool kExact = false;
#endif

size_t Rounded(size_t bytes) {
  const size_t unit = bytes >= 2 * kHugePage ? kHugePage : bytes >= kMapFrom ? kPage : kAlignment;
  return (bytes + unit - 1) / unit * unit;
}

#if defined(__linux__)
constexpr bool kMaps = !kExact;

/// A mapping of whole pages, aligned to a huge page where it covers several.
void* Map(size_t rounded) {
  const size_t slack = rounded >= 2 * kHugePage ? kHugePage : 0;
  void* whole =
      mmap(nullptr, rounded + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (whole == MAP_FAILED) return nullptr;
  if (slack == 0) return whole;
  const auto from = reinterpret_cast<uintptr_t>(whole);
  const uintptr_t begin = (from + slack - 1) & ~(kHugePage - 1);
  if (begin > from) munmap(whole, begin - from);
  const uintptr_t end = begin + rounded;
  if (from + rounded + slack > end) {
    munmap(reinterpret_cast<void*>(end), from + rounded + slack - end);
  }
  void* data = reinterpret_cast<void*>(begin);
  madvise(data, rounded, MADV_HUGEPAGE);
  return data;
}
#else
constexpr bool kMaps = false;
void* Map(size_t) { return nullptr; }
#endif

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
  if (kMaps && rounded >= kMapFrom) return Map(rounded);
  return std::aligned_alloc(kAlignment, rounded);
}

void FreeBlock(void* data, size_t rounded) {
#if defined(__linux__)
  if (kMaps && rounded >= kMapFrom) {
    munmap(data, rounded);
    return;
  }
#endif
  std::free(!kExact && rounded <= kCutUpTo ? static_cast<void**>(data)[-1] : data);
}

}  // namespace

/// The most recently freed block of that size, which is the most likely to be in the processor's
/// cache.
void* HostMemory::TakeCached(size_t rounded) {
  const auto after = by_size_.upper_bound(rounded);
  if (after == by_size_.begin()) return nullptr;
  const auto found = std::prev(after);
  if (found->first != rounded) return nullptr;
  void* data = found->second->data;
  cached_.erase(found->second);
  by_size_.erase(found);
  cached_bytes_ -= rounded;
  return data;
}

/// The most that the cache may hold beside the blocks that are live now.
size_t HostMemory::Limit() const {
  const size_t spare = most_rounded_ - live_rounded_;
  return std::max(kCacheAlways, std::min(spare, kCachePerLive * live_rounded_));
}

/// Makes room for a freed block and keeps it. Returns false if it must go back to the system.
bool HostMemory::Keep(void* data, size_t rounded) {
  const size_t limit = Limit();
  const bool keep = !kExact && rounded >= kCacheFrom && rounded <= limit;
  const size_t room = keep ? limit - rounded : limit;
  while (cached_bytes_ > room) DropOldest();
  if (!keep) return false;
  // Called from destructors, so failing to allocate the entry must not throw.
  try {
    cached_.push_back({data, rounded});
    try {
      by_size_.emplace(rounded, std::prev(cached_.end()));
    } catch (const std::bad_alloc&) {
      cached_.pop_back();
      return false;
    }
  } catch (const std::bad_alloc&) {
    return false;
  }
  cached_bytes_ += rounded;
  return true;
}

void HostMemory::DropOldest() {
  const auto [data, rounded] = cached_.front();
  // Blocks of one size are ordered by age.
  by_size_.erase(by_size_.lower_bound(rounded));
  cached_.pop_front();
  cached_bytes_ -= rounded;
  FreeBlock(data, rounded);
}

Status HostMemory::Allocate(const std::string& device, size_t bytes, void** data) {
  const size_t rounded = Rounded(bytes == 0 ? 1 : bytes);
  std::lock_guard<std::mutex> lock(mutex_);
  LOWRANK_RETURN_IF_ERROR(CheckMemoryBudget(device, usage_.live_bytes, bytes, budget_));
  // Rounding wraps around for a size that no machine has.
  void* block = rounded < bytes ? nullptr : TakeCached(rounded);
  if (block == nullptr && rounded >= bytes) {
    block = AllocateBlock(bytes, rounded);
    if (block == nullptr && !cached_.empty()) {
      while (!cached_.empty()) DropOldest();
      block = AllocateBlock(bytes, rounded);
    }
  }
  if (block == nullptr) {
    return Status(Code::kOom, device + ": no memory for " + std::to_string(bytes) +
                                  " more bytes (" + std::to_string(usage_.live_bytes) +
                                  " bytes are live)");
  }
  *data = block;
  usage_.live_bytes += static_cast<int64_t>(bytes);
  usage_.live_tensors += 1;
  live_rounded_ += rounded;
  most_rounded_ = std::max(most_rounded_, live_rounded_);
  if (usage_.live_bytes > usage_.peak_bytes) usage_.peak_bytes = usage_.live_bytes;
  return Status();
}

void HostMemory::Free(void* data, size_t bytes) {
  const size_t rounded = Rounded(bytes == 0 ? 1 : bytes);
  std::lock_guard<std::mutex> lock(mutex_);
  usage_.live_bytes -= static_cast<int64_t>(bytes);
  usage_.live_tensors -= 1;
  live_rounded_ -= rounded;
  if (!Keep(data, rounded)) FreeBlock(data, rounded);
}

MemoryUsage HostMemory::usage() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return usage_;
}

int64_t HostMemory::budget() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return budget_;
}

void HostMemory::SetBudget(int64_t bytes) {
  std::lock_guard<std::mutex> lock(mutex_);
  budget_ = bytes;
}

void HostMemory::ResetPeak() {
  std::lock_guard<std::mutex> lock(mutex_);
  usage_.peak_bytes = usage_.live_bytes;
}

}  // namespace lowrank::cpu
