#include "native/core/runtime/registry.h"

#include <atomic>
#include <cstring>
#include <iterator>
#include <mutex>

namespace lowrank {
namespace {

/// A family of devices. The first name represents it until one is started.
struct Row {
  const char* device;  // of the first; others are "<device>:<number>"
  std::vector<Backend*> (*create)();
};

constexpr Row kRows[] = {
    {"cpu", [] { return std::vector<Backend*>{CpuBackend()}; }},
    {"reference", [] { return std::vector<Backend*>{ReferenceBackend()}; }},
    {"cuda", CudaBackends},
    {"cuda-emulated", [] { return std::vector<Backend*>{CudaEmulatedBackend()}; }},
};

using Backends = std::vector<Backend*>;

// Teardown may read this without starting a device. Each is filled once and never destroyed.
std::atomic<const Backends*> g_started[std::size(kRows)];

const Backends& Start(size_t row) {
  const Backends* backends = g_started[row].load(std::memory_order_acquire);
  if (backends != nullptr) return *backends;
  static std::mutex* const mutex = new std::mutex();
  const std::lock_guard<std::mutex> lock(*mutex);
  backends = g_started[row].load(std::memory_order_acquire);
  if (backends == nullptr) {
    backends = new Backends(kRows[row].create());
    g_started[row].store(backends, std::memory_order_release);
  }
  return *backends;
}

/// Is `device` the first of the row or one of its numbered ones?
bool Names(const Row& row, const std::string& device) {
  const size_t length = std::strlen(row.device);
  return device.compare(0, length, row.device) == 0 &&
         (device.size() == length || device[length] == ':');
}

}  // namespace

Status FindKnownBackend(const std::string& device, Backend** backend) {
  for (size_t row = 0; row < std::size(kRows); ++row) {
    // Only the requested row is started: looking for GPUs takes long.
    if (!Names(kRows[row], device)) continue;
    for (Backend* candidate : Start(row)) {
      if (candidate->name() != device) continue;
      *backend = candidate;
      return Status();
    }
  }
  std::string known;
  for (const std::string& name : KnownDeviceNames()) {
    known += (known.empty() ? "" : ", ") + name;
  }
  return Refuse(Code::kDevice, "device", "device", "one of " + known, "\"" + device + "\"");
}

Status FindBackend(const std::string& device, Backend** backend) {
  LOWRANK_RETURN_IF_ERROR(FindKnownBackend(device, backend));
  return (*backend)->Ready();
}

std::vector<DeviceInfo> ListDevices() {
  std::vector<DeviceInfo> devices;
  for (size_t row = 0; row < std::size(kRows); ++row) {
    for (const Backend* backend : Start(row)) devices.push_back(backend->Info());
  }
  return devices;
}

std::vector<std::string> KnownDeviceNames() {
  std::vector<std::string> names;
  for (size_t row = 0; row < std::size(kRows); ++row) {
    const Backends* started = g_started[row].load(std::memory_order_acquire);
    if (started == nullptr) {
      names.push_back(kRows[row].device);
    } else {
      for (const Backend* backend : *started) names.push_back(backend->name());
    }
  }
  return names;
}

void DropQueued(const CancelToken* cancel) {
  for (const std::atomic<const Backends*>& started : g_started) {
    const Backends* backends = started.load(std::memory_order_acquire);
    if (backends == nullptr) continue;
    for (Backend* backend : *backends) backend->DropQueued(cancel);
  }
}

void SetThreads(int threads) { SetCpuThreads(threads); }
int GetThreads() { return GetCpuThreads(); }

}  // namespace lowrank
