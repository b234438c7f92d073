/// A base weight as the kernels see it.
#pragma once

#include "native/core/tensor_view.h"
#include "native/host_device/params/gemm_mma.h"

namespace lowrank::cuda {

/// log2 of a power of two; -1 for any other number.
constexpr int32_t Log2Exact(int64_t value) {
  if (value <= 0 || (value & (value - 1)) != 0) return -1;
  int32_t log2 = 0;
  while ((int64_t{1} << log2) < value) ++log2;
  return log2;
}

inline gpu::GemmMmaWeight DenseWeightParams(const TensorView& dense) {
  gpu::GemmMmaWeight params{};
  params.data = dense.data;
  params.dense_dtype = static_cast<uint8_t>(dense.dtype);
  return params;
}

inline gpu::GemmMmaWeight WeightParams(const WeightView& w) {
  if (!w.quantised()) return DenseWeightParams(w.dense);
  const QuantView& quant = w.quant;
  gpu::GemmMmaWeight params{};
  params.data = quant.codes;
  params.codebook = quant.codebook;
  params.absmax = quant.absmax;
  params.absmax_8bit = quant.absmax_8bit;
  params.absmax_codebook = quant.absmax_codebook;
  params.nested_absmax = quant.nested_absmax;
  params.absmax_offset = quant.absmax_offset;
  params.nested_blocksize = quant.nested_blocksize;
  params.nested_log2 = Log2Exact(quant.nested_blocksize);
  params.blocksize_log2 = Log2Exact(quant.blocksize);
  params.scale_span_log2 = params.blocksize_log2 < 6 ? params.blocksize_log2 : 6;
  params.bits = static_cast<uint8_t>(quant.format->bits);
  return params;
}

}  // namespace lowrank::cuda
