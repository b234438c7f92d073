#include "cuda/emulator/driver/host_memory.h"

#include <sys/mman.h>

#include <cstdint>
#include <map>
#include <mutex>

#include "cuda/emulator/runtime.h"

namespace lowrank::emu::driver {
namespace {

struct Pinned {
  std::mutex mutex;
  std::map<uintptr_t, size_t> bytes_at;

  static Pinned& Get() {
    static auto* const pinned = new Pinned;
    return *pinned;
  }
};

}  // namespace

void* AllocatePinned(size_t bytes) {
  // Pages of its own, as with the driver: freeing it makes a later touch a fault.
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) return nullptr;
  RegisterHost(data, bytes);
  Pinned& pinned = Pinned::Get();
  const std::lock_guard<std::mutex> lock(pinned.mutex);
  pinned.bytes_at[reinterpret_cast<uintptr_t>(data)] = bytes;
  return data;
}

bool FreePinned(void* pointer) {
  Pinned& pinned = Pinned::Get();
  size_t bytes = 0;
  {
    const std::lock_guard<std::mutex> lock(pinned.mutex);
    const auto found = pinned.bytes_at.find(reinterpret_cast<uintptr_t>(pointer));
    if (found == pinned.bytes_at.end()) return false;
    bytes = found->second;
    pinned.bytes_at.erase(found);
  }
  UnregisterHost(pointer);
  munmap(pointer, bytes);
  return true;
}

bool IsPinned(const void* pointer, size_t bytes) {
  Pinned& pinned = Pinned::Get();
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  const std::lock_guard<std::mutex> lock(pinned.mutex);
  auto after = pinned.bytes_at.upper_bound(address);
  if (after == pinned.bytes_at.begin()) return false;
  --after;
  const size_t offset_bytes = address - after->first;
  return offset_bytes < after->second && bytes <= after->second - offset_bytes;
}

}  // namespace lowrank::emu::driver
