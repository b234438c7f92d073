/// Operands of the plans that cuda_plan_table.cpp makes.
#pragma once

#include <cstdint>

#include "native/core/ops/ops.h"

namespace lowrank::plan_table {

/// What a package has machine code for (cuda/tools/kernels.cmake).
struct Architecture {
  int sm;
  const char* name;
};
constexpr Architecture kArchitectures[] = {{80, "sm_80"},  {86, "sm_86"},   {89, "sm_89"},
                                           {90, "sm_90a"}, {100, "sm_100"}, {120, "sm_120"}};

/// Of all types: what they point to is apart from one another.
inline uintptr_t g_next = uintptr_t{1} << 40;

/// Addresses that are aligned, apart from one another and never read.
template <typename T = void>
T* Some(size_t bytes = 1 << 20) {
  const uintptr_t at = g_next;
  g_next += (bytes + 4095) / 4096 * 4096;
  return reinterpret_cast<T*>(at);
}

inline TensorView Matrix(DType dtype, int64_t rows, int64_t cols) {
  TensorView view;
  view.dtype = dtype;
  view.rows = rows;
  view.cols = cols;
  view.present = true;
  view.data = Some(view.bytes());
  return view;
}

/// `format`: empty for a dense weight.
inline WeightView Weight(const char* format, DType dtype, bool double_quant, int64_t N, int64_t K) {
  WeightView w;
  if (*format == 0) {
    w.dense = Matrix(dtype, N, K);
    return w;
  }
  w.quant.format = FindFormat(format);
  w.quant.rows = N;
  w.quant.cols = K;
  w.quant.blocksize = 64;
  w.quant.codes = Some<uint8_t>(w.quant.code_bytes());
  w.quant.codebook = Some<float>();
  const auto blocks = static_cast<size_t>(w.quant.blocks());
  if (double_quant) {
    w.quant.absmax_8bit = Some<uint8_t>(blocks);
    w.quant.absmax_codebook = Some<float>();
    w.quant.nested_absmax = Some<float>(blocks);
    w.quant.absmax_offset = Some<float>();
  } else {
    w.quant.absmax = Some<float>(blocks * sizeof(float));
  }
  return w;
}

/// A planar weight with a scale for each group of 32.
inline QuantView PlanarWeight(int bits, int64_t N, int64_t K) {
  QuantView w;
  w.format = PlanarFormat(bits);
  w.rows = N;
  w.cols = K;
  w.planes.bits = static_cast<uint8_t>(bits);
  w.planes.row_bytes = (K * bits + 7) / 8;
  w.planes.grid_rows = 1;
  w.planes.grid_span = 32;
  w.planes.grid_pitch = (K + 31) / 32;
  w.planes.scale.type = PlaneType::kF16;
  w.planes.scale.data = Some(static_cast<size_t>(N * w.planes.grid_pitch) * 2);
  w.codes = Some<uint8_t>(w.code_bytes());
  w.codebook = Some<float>();
  return w;
}

}  // namespace lowrank::plan_table
