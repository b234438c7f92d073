/// The CUDA devices of the registry: "cuda", "cuda:1", ... over the system's driver, and
/// "cuda-emulated" over the emulator beside the addon. Made on first use and never destroyed, like
/// the host devices.
#include <mutex>
#include <string>
#include <vector>

#include "native/core/runtime/registry.h"
#include "native/cuda/backend.h"

namespace lowrank {
namespace {

/// A driver that is opened once; after kOom it is tried again.
class OneLibrary {
 public:
  explicit OneLibrary(Status (*open)(cuda::Library*)) : open_(open) {}

  Status Get(const cuda::Library** library) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!tried_) {
      status_ = open_(&library_);
      tried_ = status_.code() != Code::kOom;
    }
    *library = &library_;
    return status_;
  }

 private:
  Status (*open_)(cuda::Library*);
  std::mutex mutex_;
  bool tried_ = false;
  Status status_;
  cuda::Library library_;
};

Status SystemDriver(const cuda::Library** library) {
  static OneLibrary* const one = new OneLibrary(cuda::OpenSystemDriver);
  return one->Get(library);
}

Status LookForEmulator() {
  std::string path;
  return cuda::EmulatorPath(&path);
}

Status Emulator(const cuda::Library** library) {
  static OneLibrary* const one = new OneLibrary([](cuda::Library* opened) -> Status {
    std::string path;
    LOWRANK_RETURN_IF_ERROR(cuda::EmulatorPath(&path));
    return cuda::OpenEmulator(path, opened);
  });
  return one->Get(library);
}

/// How many GPUs the driver finds; 1 if none, so that "cuda" exists and can report why.
int GpuCount() {
  const cuda::Library* library = nullptr;
  int count = 0;
  if (!SystemDriver(&library).ok()) return 1;
  if (library->driver.cuDeviceGetCount(&count) != cuda::CUDA_SUCCESS || count < 1) return 1;
  return count;
}

}  // namespace

std::vector<Backend*> CudaBackends() {
  static const std::vector<Backend*>* const backends = [] {
    auto* made = new std::vector<Backend*>();
    const int count = GpuCount();
    for (int ordinal = 0; ordinal < count; ++ordinal) {
      cuda::Source source;
      source.open = SystemDriver;
      source.ordinal = ordinal;
      made->push_back(
          new cuda::CudaBackend(ordinal == 0 ? "cuda" : "cuda:" + std::to_string(ordinal), source));
    }
    return made;
  }();
  return *backends;
}

Backend* CudaEmulatedBackend() {
  static Backend* const backend = [] {
    cuda::Source source;
    source.open = Emulator;
    source.look = LookForEmulator;
    source.own_kernels = true;
    return new cuda::CudaBackend("cuda-emulated", source);
  }();
  return backend;
}

}  // namespace lowrank
