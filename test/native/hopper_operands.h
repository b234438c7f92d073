/// What the Hopper checks share: device arrays, launches of plans on the emulator, findings.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "cuda/emulator/hopper/hopper.h"
#include "native/core/dtype.h"
#include "native/cuda/plans/plan.h"

namespace lowrank::test {

/// Elements in the emulator's device memory.
template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(size_t count, size_t offset_bytes = 0)
      : count_(count),
        base_(static_cast<unsigned char*>(emu::Allocate(count * sizeof(T) + offset_bytes))),
        data_(reinterpret_cast<T*>(base_ + offset_bytes)) {}
  DeviceArray(const std::vector<T>& values, size_t offset_bytes = 0)
      : DeviceArray(values.size(), offset_bytes) {
    emu::CopyMemory(data_, values.data(), values.size() * sizeof(T));
  }
  ~DeviceArray() { emu::Free(base_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  T* data() const { return data_; }
  size_t size() const { return count_; }
  std::vector<T> Read() const {
    std::vector<T> values(count_);
    std::memcpy(values.data(), data_, count_ * sizeof(T));
    return values;
  }

 private:
  size_t count_;
  unsigned char* base_;
  T* data_;
};

/// Encodes the step's tensor maps and runs it, as the driver does.
inline bool RunStep(cuda::LaunchStep step, std::string* error) {
  for (const cuda::TensorMapRequest& request : step.tensor_maps) {
    emu::TensorMapSpec spec;
    spec.base = reinterpret_cast<uintptr_t>(request.base);
    spec.rank = request.rank;
    spec.elem_bytes = request.bytes ? 1 : static_cast<uint32_t>(DTypeBytes(request.dtype));
    for (uint32_t i = 0; i < request.rank; ++i) {
      spec.size_elems[i] = request.size_elems[i];
      spec.stride_bytes[i] = request.stride_bytes[i];
      spec.box_elems[i] = request.box_elems[i];
      spec.elem_stride[i] = 1;
    }
    spec.swizzle_bytes = request.swizzle_bytes;
    const char* refusal =
        emu::EncodeTensorMap(spec, step.params.data() + request.param_offset_bytes);
    if (refusal != nullptr) {
      *error = refusal;
      return false;
    }
  }
  emu::Launch launch;
  launch.kernel = emu::FindKernel(step.kernel);
  launch.grid = emu::Dim3(step.grid.x, step.grid.y, step.grid.z);
  launch.block = emu::Dim3(step.threads);
  launch.cluster = step.cluster;
  launch.shared_bytes = step.shared_bytes;
  launch.params = step.params.data();
  if (emu::RunGrid(launch) == emu::LaunchStatus::kOk) return true;
  *error = std::string(step.kernel) + " failed";
  return false;
}

/// Schedules a check runs under.
struct Schedule {
  emu::Order order;
  uint64_t seed;
  emu::Copies copies;
  const char* name;
};

}  // namespace lowrank::test
