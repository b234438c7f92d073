/// The arguments of the products of int8 codes (cuda/matmul_int8_sm80.cu).
#pragma once

#include "cuda/params/gemm_mma.h"

namespace lowrank::gpu {

/// x by rows: codes, and of each row a scale and the sum of its codes.
struct RowCodesParams {
  const void* x;   // [M, K] f32, bf16 or f16 by the kernel
  int8_t* codes;   // [M, K], 16-byte aligned
  float* scales;   // [M]
  int32_t* sums;   // [M]
  int64_t K;       // a multiple of 32, at most 2^17
  uint32_t whole;  // x is 16-byte aligned
};

constexpr uint32_t kRowCodesThreads = 256;
constexpr uint32_t kRowCodesUnroll = 4;  // runs of 16 bytes of x a thread has in flight
constexpr uint32_t kRowCodesSharedBytes = 2 * kRowCodesThreads / 32 * 4;

/// X(dtype, T): row_codes_<dtype>_kernel
#define LOWRANK_ROW_CODES_KERNELS(X) \
  X(f32, ElementF32)                 \
  X(bf16, ElementBF16)               \
  X(f16, ElementF16)

/// y [M, N] = float(codes · (w - 128)ᵀ) · (scale of x's row · scale of w's row) + bias
///            + scaling · (h · lora_bᵀ + lora_bias)
struct GemmInt8Params {
  GemmMmaParams gemm;  // w rowwise, data 16-byte aligned; not x, planes and splits, nor any gate
  const int8_t* codes;
  const float* scales;
  const int32_t* sums;
  int64_t tiles_m;
  int64_t blocks_per_row;  // K / blocksize: where in absmax the scales of rows are
  uint8_t y_dtype;         // ElementCode
};

/// Rows of tiles that share a panel of w: blocks in flight then read about as much of x as of w.
constexpr int64_t kGemmInt8GroupM = 8;

/// Bytes of shared memory: stages of 128 codes of each row and column of the tile, over which the
/// output is staged at the end, and the scales.
constexpr uint32_t GemmInt8SharedBytes(uint32_t tile_m, uint32_t tile_p, uint32_t stages) {
  const uint32_t loop = stages * (tile_m + tile_p) * 128;
  const uint32_t out = tile_m * (tile_p + 8) * 4;
  const uint32_t scales = (2 * tile_m + tile_p) * 4;
  return ((loop > out ? loop : out) + scales + 127) / 128 * 128;
}

/// X(tile_m, tile_p, warp_m, warp_p, stages, min_blocks): matmul_int8_<tile_m>x<tile_p>_kernel
#define LOWRANK_GEMM_INT8_KERNELS(X) \
  X(128, 128, 64, 64, 2, 2)          \
  X(64, 64, 32, 32, 3, 3)            \
  X(16, 32, 16, 16, 6, 4)

}  // namespace lowrank::gpu
