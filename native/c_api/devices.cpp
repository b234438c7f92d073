#include <algorithm>
#include <string>
#include <vector>

#include "native/c_api/operands.h"
#include "native/c_api/weights.h"
#include "native/core/runtime/registry.h"

using namespace lowrank;
using namespace lowrank::c_api;

namespace {

constexpr int kMostThreads = 256;

DLDevice MemoryOf(const std::string& name) {
  if (name.compare(0, 4, "cuda") != 0) return DLDevice{kDLCPU, 0};
  const size_t colon = name.find(':');
  return DLDevice{kDLCUDA, colon == std::string::npos ? 0 : std::stoi(name.substr(colon + 1))};
}

/// The devices that this interface can name: not the emulated one, whose memory has no number.
std::vector<DeviceInfo> Devices() {
  std::vector<DeviceInfo> devices = ListDevices();
  devices.erase(
      std::remove_if(devices.begin(), devices.end(),
                     [](const DeviceInfo& info) { return info.device == "cuda-emulated"; }),
      devices.end());
  return devices;
}

}  // namespace

int32_t lowrank_device_count(int32_t* count) {
  constexpr const char* kOp = "device_count";
  return Guard(kOp, [&]() -> Status {
    if (count == nullptr) return RefuseNull(kOp, "count", "where to write it");
    *count = static_cast<int32_t>(Devices().size());
    return Status();
  });
}

int32_t lowrank_device_at(int32_t index, lowrank_device_info* info) {
  constexpr const char* kOp = "device_at";
  return Guard(kOp, [&]() -> Result {
    const std::vector<DeviceInfo> devices = Devices();
    if (index < 0 || static_cast<size_t>(index) >= devices.size()) {
      return Refuse(Code::kValue, kOp, "index", "from 0 to " + std::to_string(devices.size() - 1),
                    std::to_string(index));
    }
    const DeviceInfo& found = devices[static_cast<size_t>(index)];
    Backend* backend = nullptr;
    LOWRANK_RETURN_IF_ERROR(FindKnownBackend(found.device, &backend));
    const Status ready = backend->ReadyNow();
    const DLDevice memory = MemoryOf(found.device);
    lowrank_device_info answer{};
    CopyText(found.device, answer.name);
    answer.available = ready.ok() ? 1 : 0;
    answer.device_type = static_cast<int32_t>(memory.device_type);
    answer.device_id = memory.device_id;
    answer.memory_bytes = found.memory_bytes;
    CopyText(found.isa, answer.isa);
    CopyText(found.name, answer.description);
    CopyText(ready.message(), answer.reason);
    return WriteInfo(kOp, answer, info);
  });
}

int32_t lowrank_set_threads(int32_t threads) {
  constexpr const char* kOp = "set_threads";
  return Guard(kOp, [&]() -> Status {
    if (threads < 1 || threads > kMostThreads) {
      return Refuse(Code::kValue, kOp, "threads", "from 1 to " + std::to_string(kMostThreads),
                    std::to_string(threads));
    }
    SetThreads(threads);
    return Status();
  });
}

int32_t lowrank_get_threads(void) { return GetThreads(); }

int32_t lowrank_memory(const char* device, lowrank_memory_info* info) {
  constexpr const char* kOp = "memory";
  return Guard(kOp, [&]() -> Result {
    if (device == nullptr) return RefuseNull(kOp, "device", "a name");
    Backend* backend = nullptr;
    LOWRANK_RETURN_IF_ERROR(FindKnownBackend(device, &backend));
    const MemoryUsage usage = backend->Memory();
    lowrank_memory_info answer{};
    answer.live_bytes = usage.live_bytes;
    answer.peak_bytes = usage.peak_bytes;
    answer.live_blocks = usage.live_tensors;
    answer.live_weights = LiveWeights();
    return WriteInfo(kOp, answer, info);
  });
}
