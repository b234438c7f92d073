/// A device as the programs of gpu:test and gpu:bench use it: the driver's table and the plans,
/// without the queue and without JavaScript, so that they say themselves what runs where and when.
#pragma once

#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "native/cuda/driver/context.h"

namespace lowrank::cuda {

struct Machine {
  std::string name;
  Library library;
  Gpu gpu;
  KernelImage image;
  std::unique_ptr<Context> context;

  const Driver& driver() const { return library.driver; }
  CUstream home() const { return context->home(); }
  Status Check(CUresult result, const char* call) { return context->Check(result, call); }
};

/// `library` is an emulator that brings its kernels, or null: the system's driver, with the kernels
/// of the file `image` beside this program.
inline Status StartMachine(const char* library, const char* image, Machine* machine) {
  if (library == nullptr) {
    LOWRANK_RETURN_IF_ERROR(OpenSystemDriver(&machine->library));
  } else {
    LOWRANK_RETURN_IF_ERROR(OpenEmulator(library, &machine->library));
  }
  LOWRANK_RETURN_IF_ERROR(ProbeGpu(machine->library, 0, &machine->gpu));
  if (library == nullptr) {
    LOWRANK_RETURN_IF_ERROR(KernelImage::Open(BesideThis(image), &machine->image));
    LOWRANK_RETURN_IF_ERROR(CheckImage(machine->image, machine->gpu, machine->library));
  }
  machine->context = std::make_unique<Context>(machine->name, machine->library);
  return machine->context->Start(machine->gpu, library == nullptr ? &machine->image : nullptr);
}

/// Device memory, freed with this. Copies wait until they are done.
class DeviceMemory {
 public:
  explicit DeviceMemory(Machine* machine) : machine_(*machine) {}
  ~DeviceMemory() { Clear(); }
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  void Clear() {
    for (const CUdeviceptr pointer : allocated_) machine_.driver().cuMemFree_v2(pointer);
    allocated_.clear();
  }
  /// Null where it fails; then status() says why, and stays so.
  void* Take(size_t bytes) {
    CUdeviceptr pointer = 0;
    Keep(machine_.driver().cuMemAlloc_v2(&pointer, std::max<size_t>(bytes, 16)), "cuMemAlloc_v2");
    if (pointer != 0) allocated_.push_back(pointer);
    return reinterpret_cast<void*>(static_cast<uintptr_t>(pointer));
  }
  void Free(const void* pointer) {
    const auto found = std::find(allocated_.begin(), allocated_.end(), Address(pointer));
    if (found == allocated_.end()) return;
    machine_.driver().cuMemFree_v2(*found);
    allocated_.erase(found);
  }
  void Set(void* pointer, unsigned char value, size_t bytes) {
    Keep(machine_.driver().cuMemsetD8Async(Address(pointer), value, bytes, machine_.home()),
         "cuMemsetD8Async");
    Wait();
  }
  void* Zeros(size_t bytes) {
    void* const pointer = Take(bytes);
    if (pointer != nullptr) Set(pointer, 0, bytes);
    return pointer;
  }
  void* Put(const void* data, size_t bytes) {
    void* const pointer = Take(bytes);
    if (pointer != nullptr && bytes > 0) Write(pointer, data, bytes);
    return pointer;
  }
  void Write(void* pointer, const void* data, size_t bytes) {
    Keep(machine_.driver().cuMemcpyHtoDAsync_v2(Address(pointer), data, bytes, machine_.home()),
         "cuMemcpyHtoDAsync_v2");
    Wait();
  }
  void Read(const void* pointer, void* data, size_t bytes) {
    if (bytes == 0 || !status_.ok()) return;
    Keep(machine_.driver().cuMemcpyDtoHAsync_v2(data, Address(pointer), bytes, machine_.home()),
         "cuMemcpyDtoHAsync_v2");
    Wait();
  }
  void Wait() {
    Keep(machine_.driver().cuStreamSynchronize(machine_.home()), "cuStreamSynchronize");
  }

  const Status& status() const { return status_; }
  static CUdeviceptr Address(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer); }

 private:
  void Keep(CUresult result, const char* call) {
    if (status_.ok()) status_ = machine_.Check(result, call);
  }

  Machine& machine_;
  std::vector<CUdeviceptr> allocated_;
  Status status_;
};

/// The launches of an op over a workspace that is taken from `memory`.
template <typename Op>
Status PlanOp(Machine* machine, const Op& op, DeviceMemory* memory, Plan* plan) {
  LOWRANK_RETURN_IF_ERROR(op.Check());
  Workspace measure;
  LOWRANK_RETURN_IF_ERROR(MakePlan(op, machine->context->limits(), &measure, plan));
  Workspace workspace(memory->Take(measure.bytes()));
  LOWRANK_RETURN_IF_ERROR(memory->status());
  *plan = Plan();
  return MakePlan(op, machine->context->limits(), &workspace, plan);
}

/// Queues them, as the backend does.
inline Status RunPlan(Machine* machine, const Plan& plan, CUstream stream) {
  if (plan.first_non_finite != nullptr) {
    LOWRANK_RETURN_IF_ERROR(
        machine->Check(machine->driver().cuMemsetD8Async(
                           DeviceMemory::Address(plan.first_non_finite), 0x7f, 8, stream),
                       "cuMemsetD8Async"));
  }
  return machine->context->Launch(plan.steps, stream);
}

/// Text as it may stand between the quotes of a JSON string.
inline std::string JsonText(std::string text) {
  for (char& c : text) {
    if (c == '"' || c == '\\' || static_cast<unsigned char>(c) < 0x20) c = ' ';
  }
  return text;
}

/// The first line that each of these programs prints.
inline void PrintMachine(const Machine& machine) {
  const DeviceLimits& limits = machine.gpu.limits;
  std::printf(
      "{\"card\":\"%s\",\"sm\":%d,\"multiprocessors\":%d,\"l2_bytes\":%lld,"
      "\"memory_bytes\":%lld,\"driver\":\"CUDA %s\",\"kernels\":\"%s\"}\n",
      JsonText(machine.gpu.card).c_str(), limits.sm, limits.sm_count,
      static_cast<long long>(limits.l2_bytes), static_cast<long long>(machine.gpu.memory_bytes),
      VersionText(machine.library.version).c_str(), JsonText(machine.image.compiler()).c_str());
  std::fflush(stdout);
}

}  // namespace lowrank::cuda
