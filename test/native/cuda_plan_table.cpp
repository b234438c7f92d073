/// The most dynamic shared memory that a plan gives each kernel, over sizes of real models on an
/// A100 and an H100: a line of JSON a kernel, for `check:cuda --trace`. Arithmetic only, no device.
#include <algorithm>
#include <cstdio>
#include <map>
#include <string>

#include "native/cuda/plan.h"

namespace {

using namespace lowrank;
using cuda::DeviceLimits;
using cuda::Plan;

/// An address that is aligned and never read.
void* Somewhere() { return reinterpret_cast<void*>(uintptr_t{1} << 40); }
template <typename T>
T* Some() {
  return static_cast<T*>(Somewhere());
}

TensorView Matrix(DType dtype, int64_t rows, int64_t cols) {
  TensorView view;
  view.data = Somewhere();
  view.dtype = dtype;
  view.rows = rows;
  view.cols = cols;
  view.present = true;
  return view;
}

WeightView Weight(const char* format, DType dtype, bool double_quant, int64_t N, int64_t K) {
  WeightView w;
  if (*format == 0) {
    w.dense = Matrix(dtype, N, K);
    return w;
  }
  w.quant.format = FindFormat(format);
  w.quant.rows = N;
  w.quant.cols = K;
  w.quant.blocksize = 64;
  w.quant.codes = Some<uint8_t>();
  w.quant.codebook = Some<float>();
  if (double_quant) {
    w.quant.absmax_8bit = Some<uint8_t>();
    w.quant.absmax_codebook = Some<float>();
    w.quant.nested_absmax = Some<float>();
    w.quant.absmax_offset = Some<float>();
  } else {
    w.quant.absmax = Some<float>();
  }
  return w;
}

std::map<std::string, uint32_t> most_by_kernel;

template <typename Op>
void Add(const Op& op, const DeviceLimits& device) {
  cuda::Workspace workspace(Somewhere());
  Plan plan;
  if (!MakePlan(op, device, &workspace, &plan).ok()) return;
  for (const cuda::LaunchStep& step : plan.steps) {
    uint32_t& most = most_by_kernel[step.kernel];
    most = std::max(most, step.shared_bytes);
  }
}

void AddAll(const DeviceLimits& device, DType dtype, const WeightView& w, int64_t M, int64_t r) {
  const int64_t N = w.rows();
  const int64_t K = w.cols();
  MatmulOp matmul;
  matmul.x = Matrix(dtype, M, K);
  matmul.w = w;
  matmul.y = Matrix(dtype, M, N);
  Add(matmul, device);
  MatmulInputGradOp grad;
  grad.dy = Matrix(dtype, M, N);
  grad.w = w;
  grad.dx = Matrix(dtype, M, K);
  Add(grad, device);
  LoraForwardOp forward;
  forward.x = matmul.x;
  forward.w = w;
  forward.lora_a = Matrix(DType::kF32, r, K);
  forward.lora_b = Matrix(DType::kF32, N, r);
  forward.h = Matrix(DType::kF32, M, r);
  forward.y = matmul.y;
  forward.scaling = 2;
  Add(forward, device);
  LoraBackwardOp backward;
  backward.dy = grad.dy;
  backward.x = matmul.x;
  backward.w = w;
  backward.lora_a = forward.lora_a;
  backward.lora_b = forward.lora_b;
  backward.h = forward.h;
  backward.dx = grad.dx;
  backward.d_lora_a = Matrix(DType::kF32, r, K);
  backward.d_lora_b = Matrix(DType::kF32, N, r);
  backward.scaling = 2;
  Add(backward, device);
}

}  // namespace

int main() {
  DeviceLimits h100;
  h100.sm = 90;
  h100.sm_count = 132;
  h100.shared_bytes_per_block = 227 * 1024;
  h100.shared_bytes_per_sm = 228 * 1024;
  h100.l2_bytes = 50 << 20;
  for (const DeviceLimits& device : {DeviceLimits(), h100}) {
    for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
      for (const char* format : {"", "nf4", "int8"}) {
        for (const bool double_quant : {false, true}) {
          for (const int64_t M : {1, 8, 16, 32, 64, 200, 4096}) {
            for (const int64_t r : {8, 16, 64}) {
              AddAll(device, dtype, Weight(format, dtype, double_quant, 4096, 4096), M, r);
              AddAll(device, dtype, Weight(format, dtype, double_quant, 4096, 14336), M, r);
            }
          }
        }
      }
    }
  }
  for (const auto& [kernel, bytes] : most_by_kernel) {
    std::printf("{\"kernel\": \"%s\", \"shared_bytes\": %u}\n", kernel.c_str(), bytes);
  }
  return 0;
}
