#include "cuda/emulator/driver/host_memory.h"

#include <sys/mman.h>

#include <cstdint>
#include <iterator>
#include <map>
#include <mutex>

#include "cuda/emulator/runtime.h"

namespace lowrank::emu::driver {
namespace {

struct Block {
  size_t bytes = 0;
  bool ours = true;  // else the caller's
};

struct Pinned {
  std::mutex mutex;
  std::map<uintptr_t, Block> block_at;

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
  pinned.block_at[reinterpret_cast<uintptr_t>(data)] = {bytes, true};
  return data;
}

bool FreePinned(void* pointer) {
  Pinned& pinned = Pinned::Get();
  size_t bytes = 0;
  {
    const std::lock_guard<std::mutex> lock(pinned.mutex);
    const auto found = pinned.block_at.find(reinterpret_cast<uintptr_t>(pointer));
    if (found == pinned.block_at.end() || !found->second.ours) return false;
    bytes = found->second.bytes;
    pinned.block_at.erase(found);
  }
  UnregisterHost(pointer);
  munmap(pointer, bytes);
  return true;
}

bool PinExisting(void* pointer, size_t bytes) {
  Pinned& pinned = Pinned::Get();
  const auto begin = reinterpret_cast<uintptr_t>(pointer);
  {
    const std::lock_guard<std::mutex> lock(pinned.mutex);
    const auto after = pinned.block_at.lower_bound(begin);
    if (after != pinned.block_at.end() && after->first < begin + bytes) return false;
    if (after != pinned.block_at.begin()) {
      const auto before = std::prev(after);
      if (before->first + before->second.bytes > begin) return false;
    }
    pinned.block_at[begin] = {bytes, false};
  }
  RegisterHost(pointer, bytes);
  return true;
}

bool UnpinExisting(void* pointer) {
  Pinned& pinned = Pinned::Get();
  {
    const std::lock_guard<std::mutex> lock(pinned.mutex);
    const auto found = pinned.block_at.find(reinterpret_cast<uintptr_t>(pointer));
    if (found == pinned.block_at.end() || found->second.ours) return false;
    pinned.block_at.erase(found);
  }
  UnregisterHost(pointer);
  return true;
}

bool IsPinned(const void* pointer, size_t bytes) {
  Pinned& pinned = Pinned::Get();
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  const std::lock_guard<std::mutex> lock(pinned.mutex);
  auto after = pinned.block_at.upper_bound(address);
  if (after == pinned.block_at.begin()) return false;
  --after;
  const size_t offset_bytes = address - after->first;
  const size_t block_bytes = after->second.bytes;
  return offset_bytes < block_bytes && bytes <= block_bytes - offset_bytes;
}

}  // namespace lowrank::emu::driver
