/// Device memory in a reserved range: every allocation ends at a page that faults, and freed pages
/// fault until the range has been gone through once.
#include "cuda/emulator/state/memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <mutex>
#include <shared_mutex>

#include "cuda/emulator/state/report.h"
#include "cuda/emulator/state/scheduler.h"

namespace lowrank::emu {

uintptr_t shared_range_begin = ~uintptr_t{0} - kSharedStride * kMaxSlots;

namespace {

constexpr size_t kPage = 4096;
constexpr size_t kRangeBytes = size_t{64} << 30;
constexpr unsigned char kPoison = 0xff;

struct Memory {
  std::shared_mutex mutex;
  std::map<uintptr_t, std::unique_ptr<Region>> regions;  // by begin
  uintptr_t range_begin = 0;
  uintptr_t next = 0;                    // where the search for room goes on
  std::map<uintptr_t, uintptr_t> taken;  // pages in use: begin, end
  size_t allocated_bytes = 0;
  uintptr_t host_begin = ~uintptr_t{0};  // covers all host ranges
  uintptr_t host_end = 0;
};

Memory& Get() {
  static auto* memory = new Memory;
  return *memory;
}

std::atomic<uint64_t> generation{1};
uintptr_t range_begin_for_hooks = ~uintptr_t{0} - kRangeBytes;

/// Is it worth knowing what is initialised? Only a launch that will be checked asks.
bool WillCheck() {
  const int check = CurrentOptions().check;
  if (check == 0) return false;
  static const bool any_always = [] {
    const auto kernels = AllKernels();
    return std::any_of(kernels.begin(), kernels.end(),
                       [](const Kernel* kernel) { return kernel->hooks == Hooks::kAlways; });
  }();
  return check == 1 || any_always;
}

void* Reserve(size_t bytes) {
  void* base = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return base == MAP_FAILED ? nullptr : base;
}

/// Pages for an allocation: the first gap from `next` on, so that what was freed is used last.
uintptr_t TakePages(Memory* memory, size_t bytes) {
  const uintptr_t end = memory->range_begin + kRangeBytes;
  for (int round = 0; round < 2; ++round) {
    uintptr_t at = memory->next;
    auto after = memory->taken.lower_bound(at);
    if (after != memory->taken.begin()) at = std::max(at, std::prev(after)->second);
    while (at + bytes <= end) {
      if (after == memory->taken.end() || after->first >= at + bytes) {
        memory->taken[at] = at + bytes;
        memory->next = at + bytes;
        return at;
      }
      at = after->second;
      ++after;
    }
    memory->next = memory->range_begin;
  }
  return 0;
}

/// An allocation, or a gap between two.
struct Range {
  uintptr_t begin;
  size_t bytes;
  Region* region;  // null: a gap
};

Range FindLocked(Memory* memory, uintptr_t address) {
  const auto after = memory->regions.upper_bound(address);
  const uintptr_t end = after == memory->regions.end() ? ~uintptr_t{0} : after->first;
  if (after == memory->regions.begin()) return {0, end, nullptr};
  Region* region = std::prev(after)->second.get();
  if (address - region->begin < region->bytes) return {region->begin, region->bytes, region};
  const uintptr_t gap = region->begin + region->bytes;
  return {gap, end - gap, nullptr};
}

/// What a thread asked for last: a kernel goes to and fro between a few operands.
struct RecentRanges {
  static constexpr uint32_t kCount = 8;
  uint64_t generation;
  uint32_t last;  // the one asked for
  uint32_t next;  // the one to be replaced
  Range ranges[kCount];
};
__thread RecentRanges recent __attribute__((tls_model("initial-exec")));

void MarkRange(const void* ptr, size_t bytes) {
  const auto address = reinterpret_cast<uintptr_t>(ptr);
  if (bytes == 0) return;
  if (InSharedRange(address)) {
    if (worker == nullptr || !running->check) return;
    BlockState* block = worker->BlockOfShared(address);
    if (block != nullptr) block->shadow.Mark(address, bytes, true);
    return;
  }
  Region* region = FindRegion(address);
  if (region == nullptr) return;
  region->shadow.Mark(address, std::min(bytes, region->begin + region->bytes - address), true);
}

}  // namespace

Region* FindRegion(uintptr_t address) {
  const uint64_t now = generation.load(std::memory_order_acquire);
  if (recent.generation != now) recent = {now, 0, 0, {}};
  const Range& last = recent.ranges[recent.last];
  if (address - last.begin < last.bytes) return last.region;
  for (uint32_t i = 0; i < RecentRanges::kCount; ++i) {
    const Range& range = recent.ranges[i];
    if (address - range.begin >= range.bytes) continue;
    recent.last = i;
    return range.region;
  }
  Memory& memory = Get();
  const std::shared_lock<std::shared_mutex> lock(memory.mutex);
  const Range range = FindLocked(&memory, address);
  // Allocations change under the lock: one made since `now` was read is not kept for it.
  if (generation.load(std::memory_order_acquire) == now) {
    recent.last = recent.next++ % RecentRanges::kCount;
    recent.ranges[recent.last] = range;
  }
  return range.region;
}

Region* RegionBefore(uintptr_t address) {
  Memory& memory = Get();
  const std::shared_lock<std::shared_mutex> lock(memory.mutex);
  auto after = memory.regions.upper_bound(address);
  return after == memory.regions.begin() ? nullptr : std::prev(after)->second.get();
}

bool EnsureShadow(Region* region) {
  // What was written before anyone watched is not known: taken as initialised.
  return region->shadow.present() || region->shadow.Reset(region->begin, region->bytes, true);
}

bool InDeviceRange(uintptr_t address) { return address - range_begin_for_hooks < kRangeBytes; }

bool MaybeGlobal(uintptr_t address) {
  const Memory& memory = Get();
  return InDeviceRange(address) || (address >= memory.host_begin && address < memory.host_end);
}

void ForgetAccesses() {
  Memory& memory = Get();
  const std::unique_lock<std::shared_mutex> lock(memory.mutex);
  for (auto& [begin, region] : memory.regions) region->shadow.Forget(begin, region->bytes);
}

unsigned char* SharedWindow(uint32_t slot) {
  static std::mutex mutex;
  const std::lock_guard<std::mutex> lock(mutex);
  static void* const base = Reserve(kSharedStride * kMaxSlots);
  if (base == nullptr || slot >= kMaxSlots) return nullptr;
  shared_range_begin = reinterpret_cast<uintptr_t>(base);
  unsigned char* window = static_cast<unsigned char*>(base) + slot * kSharedStride;
  return mprotect(window, kSharedWindow, PROT_READ | PROT_WRITE) == 0 ? window : nullptr;
}

void* Allocate(size_t bytes, size_t alignment) {
  Memory& memory = Get();
  if (bytes > kRangeBytes / 2 || alignment == 0 || alignment > kPage) return nullptr;
  const size_t room = (std::max<size_t>(bytes, 1) + alignment - 1) / alignment * alignment;
  const size_t data_pages = (room + kPage - 1) / kPage * kPage;
  const std::unique_lock<std::shared_mutex> lock(memory.mutex);
  if (memory.range_begin == 0) {
    memory.range_begin = reinterpret_cast<uintptr_t>(Reserve(kRangeBytes));
    if (memory.range_begin == 0) return nullptr;
    memory.next = memory.range_begin;
    range_begin_for_hooks = memory.range_begin;
  }
  const uintptr_t pages = TakePages(&memory, data_pages + kPage);
  if (pages == 0) return nullptr;
  if (mprotect(reinterpret_cast<void*>(pages), data_pages, PROT_READ | PROT_WRITE) != 0) {
    memory.taken.erase(pages);
    return nullptr;
  }
  std::memset(reinterpret_cast<void*>(pages), kPoison, data_pages);
  auto region = std::make_unique<Region>();
  region->begin = pages + data_pages - room;
  region->bytes = bytes;
  region->pages_begin = pages;
  region->pages_bytes = data_pages + kPage;
  if (WillCheck() && bytes != 0) region->shadow.Reset(region->begin, bytes, false);
  memory.allocated_bytes += bytes;
  void* ptr = reinterpret_cast<void*>(region->begin);
  memory.regions[region->begin] = std::move(region);
  generation.fetch_add(1, std::memory_order_release);
  return ptr;
}

bool Free(void* ptr) {
  Memory& memory = Get();
  size_t overwritten = 0;
  size_t bytes = 0;
  {
    const std::unique_lock<std::shared_mutex> lock(memory.mutex);
    const auto found = memory.regions.find(reinterpret_cast<uintptr_t>(ptr));
    if (found == memory.regions.end() || found->second->host) return false;
    const Region& region = *found->second;
    bytes = region.bytes;
    const auto* end =
        reinterpret_cast<const unsigned char*>(region.pages_begin) + (region.pages_bytes - kPage);
    for (const auto* p = static_cast<unsigned char*>(ptr) + bytes; p != end; ++p) {
      if (*p != kPoison) ++overwritten;
    }
    void* pages = reinterpret_cast<void*>(region.pages_begin);
    madvise(pages, region.pages_bytes, MADV_DONTNEED);
    mprotect(pages, region.pages_bytes, PROT_NONE);
    memory.taken.erase(region.pages_begin);
    memory.allocated_bytes -= bytes;
    memory.regions.erase(found);
    generation.fetch_add(1, std::memory_order_release);
  }
  if (overwritten != 0) {
    Report("oob-global", Site(), Site(),
           "%zu bytes right after an allocation of %zu were overwritten (found when it was freed)",
           overwritten, bytes);
    FlushFindings("free");
  }
  return true;
}

void RegisterHost(void* ptr, size_t bytes) {
  Memory& memory = Get();
  const std::unique_lock<std::shared_mutex> lock(memory.mutex);
  auto region = std::make_unique<Region>();
  region->begin = reinterpret_cast<uintptr_t>(ptr);
  region->bytes = bytes;
  region->host = true;
  memory.host_begin = std::min(memory.host_begin, region->begin);
  memory.host_end = std::max(memory.host_end, region->begin + bytes);
  memory.regions[region->begin] = std::move(region);
  generation.fetch_add(1, std::memory_order_release);
}

bool UnregisterHost(void* ptr) {
  Memory& memory = Get();
  const std::unique_lock<std::shared_mutex> lock(memory.mutex);
  const auto found = memory.regions.find(reinterpret_cast<uintptr_t>(ptr));
  if (found == memory.regions.end() || !found->second->host) return false;
  memory.regions.erase(found);
  generation.fetch_add(1, std::memory_order_release);
  return true;
}

bool FindRange(const void* ptr, void** base, size_t* bytes, bool* is_host) {
  Memory& memory = Get();
  const std::shared_lock<std::shared_mutex> lock(memory.mutex);
  const Region* region = FindLocked(&memory, reinterpret_cast<uintptr_t>(ptr)).region;
  if (region == nullptr) return false;
  if (base != nullptr) *base = reinterpret_cast<void*>(region->begin);
  if (bytes != nullptr) *bytes = region->bytes;
  if (is_host != nullptr) *is_host = region->host;
  return true;
}

size_t AllocatedBytes() {
  Memory& memory = Get();
  const std::shared_lock<std::shared_mutex> lock(memory.mutex);
  return memory.allocated_bytes;
}

void CopyMemory(void* dst, const void* src, size_t bytes) {
  if (bytes == 0) return;
  std::memmove(dst, src, bytes);
  const auto to = reinterpret_cast<uintptr_t>(dst);
  const auto from = reinterpret_cast<uintptr_t>(src);
  Region* target = MaybeGlobal(to) ? FindRegion(to) : nullptr;
  if (target == nullptr || !target->shadow.present()) return;
  Region* source = MaybeGlobal(from) ? FindRegion(from) : nullptr;
  const size_t inside = std::min(bytes, target->begin + target->bytes - to);
  if (source == nullptr) {
    target->shadow.Mark(to, inside, true);
  } else {
    target->shadow.CopyMarks(to, source->shadow, from,
                             std::min(inside, source->begin + source->bytes - from));
  }
}

void SetMemory(void* dst, int value, size_t bytes) {
  if (bytes == 0) return;
  std::memset(dst, value, bytes);
  MarkRange(dst, bytes);
}

void MarkInitialised(const void* ptr, size_t bytes) { MarkRange(ptr, bytes); }

uint32_t SharedAddress(const void* s_ptr) {
  return static_cast<uint32_t>((reinterpret_cast<uintptr_t>(s_ptr) - shared_range_begin) %
                               kSharedStride);
}

void* SharedPointer(uint32_t address) { return current->block->shared_window + address; }

bool IsShared(const void* ptr) { return InSharedRange(reinterpret_cast<uintptr_t>(ptr)); }

bool IsGlobal(const void* ptr) {
  const auto address = reinterpret_cast<uintptr_t>(ptr);
  return MaybeGlobal(address) && FindRegion(address) != nullptr;
}

}  // namespace lowrank::emu
