/// Runs a launch plan of native/cuda in the emulator, with no driver between: how a kernel is
/// tested natively.
///
///   F="-std=c++17 -I. -DLOWRANK_EMULATE -march=x86-64-v3 -fno-strict-aliasing -ffp-contract=off
///   -g" HOOKS="-O2 -fsanitize=thread --param tsan-instrument-func-entry-exit=0
///     --param tsan-distinguish-volatile=1 -fno-tree-sra -fno-ipa-sra -fno-tree-fre -fno-tree-pre
///     -fno-tree-vectorize -fno-tree-slp-vectorize -fno-crossjumping -fno-tree-tail-merge"
///   # the runtime, once
///   for f in $(find cuda/emulator -name '*.cpp' -not -path '*/driver/*'); do
///     g++ $F -O2 -c $f -o out/emulator_$(basename $f .cpp).o; done
///   for k in elementwise/{cast,random} quantize/{dequantize,quantize,quantize_rows}; do
///     o=out/$(basename $k).o
///     # fast
///     g++ $F -O2 -x c++ -c cuda/${k}_sm80.cu -o $o
///     # or with every access checked (compile only: no -fsanitize when linking)
///     g++ $F $HOOKS -x c++ -c cuda/${k}_sm80.cu -o $o; done
///   g++ $F -O2 test/native/cuda_streaming_check.cpp out/*.o build/liblowrank_core.a -o out/check
///     -pthread -ldl && out/check
///
/// Options come from LOWRANK_EMULATOR_* where the test calls OptionsFromEnvironment().
#pragma once

#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "cuda/emulator/runtime.h"
#include "native/cuda/plans/plan.h"

namespace lowrank::emu {

/// Writes the 128-byte tensor maps into the parameters; given by whoever models TMA.
using TensorMapEncoder = bool (*)(const cuda::TensorMapRequest& request, void* map128);

/// The steps in order. Findings are printed and kept (Findings()); the status says what the first
/// failing launch did.
inline Status RunPlan(const cuda::Plan& plan, TensorMapEncoder encode = nullptr) {
  for (const cuda::LaunchStep& step : plan.steps) {
    Launch launch;
    launch.kernel = FindKernel(step.kernel);
    if (launch.kernel == nullptr) {
      return Status(Code::kUnsupported, std::string("emulator: no kernel ") + step.kernel);
    }
    if (launch.kernel->param_bytes != step.param_bytes) {
      return Status(Code::kCompute, std::string("emulator: ") + step.kernel + " takes " +
                                        std::to_string(launch.kernel->param_bytes) +
                                        " bytes of parameters, got " +
                                        std::to_string(step.param_bytes));
    }
    cuda::LaunchStep filled = step;
    for (const cuda::TensorMapRequest& request : step.tensor_maps) {
      if (encode == nullptr ||
          !encode(request, filled.params.data() + request.param_offset_bytes)) {
        return Status(Code::kUnsupported, std::string("emulator: tensor map of ") + step.kernel);
      }
    }
    launch.grid = Dim3(step.grid.x, step.grid.y, step.grid.z);
    launch.block = Dim3(step.threads);
    launch.cluster = step.cluster;
    launch.shared_bytes = step.shared_bytes;
    launch.params = filled.params.data();
    if (RunGrid(launch) != LaunchStatus::kOk) {
      const std::vector<Finding> findings = Findings();
      return Status(Code::kCompute, std::string("emulator: ") + step.kernel + " failed: " +
                                        (findings.empty() ? "" : findings.back().text));
    }
  }
  return Status();
}

/// An array in device memory. It ends `alignment` bytes or less before a page that faults, so an
/// alignment of 16 (or less, where the kernel allows it) finds the smallest overrun.
template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(size_t elems, size_t alignment = 256)
      : elems_(elems), data_(static_cast<T*>(Allocate(elems * sizeof(T), alignment))) {}
  explicit DeviceArray(const std::vector<T>& values, size_t alignment = 256)
      : DeviceArray(values.size(), alignment) {
    CopyMemory(data_, values.data(), elems_ * sizeof(T));
  }
  ~DeviceArray() {
    if (data_ != nullptr) Free(data_);
  }
  DeviceArray(DeviceArray&& other) noexcept
      : elems_(other.elems_), data_(std::exchange(other.data_, nullptr)) {}
  DeviceArray& operator=(DeviceArray&&) = delete;

  T* data() const { return data_; }
  size_t elems() const { return elems_; }

 private:
  size_t elems_;
  T* data_;
};

}  // namespace lowrank::emu
