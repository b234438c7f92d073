#include "cuda/emulator/driver/host_memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <iterator>
#include <map>
#include <mutex>

#include "cuda/emulator/runtime.h"

namespace lowrank::emu::driver {
namespace {

/// Of what is handed out; the bytes up to the guard page are fewer than this.
constexpr size_t kAlignment = 64;

struct Range {
  size_t bytes = 0;
  void* mapping = nullptr;  // null: the caller's memory
  size_t mapped_bytes = 0;
};

struct Pinned {
  std::mutex mutex;
  std::map<uintptr_t, Range> ranges;  // by the address handed out

  static Pinned& Get() {
    static auto* const pinned = new Pinned;
    return *pinned;
  }
};

}  // namespace

void* AllocatePinned(size_t bytes) {
  // Pages of its own, as with the driver, so that a touch after the free is a fault; and its end at
  // a page that faults.
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t usable = (bytes + page - 1) / page * page;
  if (usable < bytes) return nullptr;
  void* mapping = mmap(nullptr, usable + page, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) return nullptr;
  auto* const begin = static_cast<unsigned char*>(mapping);
  mprotect(begin + usable, page, PROT_NONE);
  unsigned char* const data = begin + usable - (bytes + kAlignment - 1) / kAlignment * kAlignment;
  RegisterHost(data, bytes);
  Pinned& pinned = Pinned::Get();
  const std::lock_guard<std::mutex> lock(pinned.mutex);
  pinned.ranges[reinterpret_cast<uintptr_t>(data)] = {bytes, mapping, usable + page};
  return data;
}

bool FreePinned(void* pointer) {
  Pinned& pinned = Pinned::Get();
  Range range;
  {
    const std::lock_guard<std::mutex> lock(pinned.mutex);
    const auto found = pinned.ranges.find(reinterpret_cast<uintptr_t>(pointer));
    if (found == pinned.ranges.end() || found->second.mapping == nullptr) return false;
    range = found->second;
    pinned.ranges.erase(found);
  }
  UnregisterHost(pointer);
  munmap(range.mapping, range.mapped_bytes);
  return true;
}

bool PinExisting(void* pointer, size_t bytes) {
  Pinned& pinned = Pinned::Get();
  const auto begin = reinterpret_cast<uintptr_t>(pointer);
  {
    const std::lock_guard<std::mutex> lock(pinned.mutex);
    const auto after = pinned.ranges.lower_bound(begin);
    if (after != pinned.ranges.end() && after->first < begin + bytes) return false;
    if (after != pinned.ranges.begin()) {
      const auto before = std::prev(after);
      if (before->first + before->second.bytes > begin) return false;
    }
    pinned.ranges[begin] = {bytes, nullptr, 0};
  }
  RegisterHost(pointer, bytes);
  return true;
}

bool UnpinExisting(void* pointer) {
  Pinned& pinned = Pinned::Get();
  {
    const std::lock_guard<std::mutex> lock(pinned.mutex);
    const auto found = pinned.ranges.find(reinterpret_cast<uintptr_t>(pointer));
    if (found == pinned.ranges.end() || found->second.mapping != nullptr) return false;
    pinned.ranges.erase(found);
  }
  UnregisterHost(pointer);
  return true;
}

bool IsPinned(const void* pointer, size_t bytes) {
  Pinned& pinned = Pinned::Get();
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  const std::lock_guard<std::mutex> lock(pinned.mutex);
  auto after = pinned.ranges.upper_bound(address);
  if (after == pinned.ranges.begin()) return false;
  --after;
  const size_t offset_bytes = address - after->first;
  return offset_bytes < after->second.bytes && bytes <= after->second.bytes - offset_bytes;
}

}  // namespace lowrank::emu::driver
