/// The arguments of the products of int8 codes (cuda/int8/matmul_int8_sm80.cu,
/// cuda/int8/matmul_int8_wgmma_sm90a.cu).
#pragma once

#include "native/host_device/params/gemm_mma.h"
#include "native/host_device/params/parts/tensor_map.h"

namespace lowrank::gpu {

/// x by rows: codes, and for each row a scale and the sum of its codes.
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

/// Row tiles that share a panel of w: blocks in flight then read about as much of x as of w.
constexpr int64_t kGemmInt8GroupM = 8;

/// Bytes of shared memory: stages of 128 codes for each row and column of the tile, reused to stage
/// the output at the end, and the scales.
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

/// On Hopper: rows and columns of a block's tile, bytes of a row per stage, stages, blocks of a
/// cluster (which share a column tile), threads, columns of y that a warp stages at a time.
constexpr uint32_t kInt8WgmmaTileM = 128;
constexpr uint32_t kInt8WgmmaTileP = 256;
constexpr uint32_t kInt8WgmmaSlab = 128;  // the widest swizzle
constexpr uint32_t kInt8WgmmaStages = 4;
constexpr uint32_t kInt8WgmmaCluster = 2;
constexpr uint32_t kInt8WgmmaThreads = 384;
constexpr uint32_t kInt8WgmmaOutCols = 64;
constexpr uint32_t kInt8WgmmaWarps = 8;  // that multiply

/// Bytes of shared memory: stages of x and w; 16 rows of 72 elements of y for each warp that
/// multiplies; two tables of scales, sums and biases; barriers for these and the stages; padded to
/// the 1,024 bytes of the swizzle.
constexpr uint32_t kInt8WgmmaSharedBytes =
    (kInt8WgmmaStages * (kInt8WgmmaTileM + kInt8WgmmaTileP) * kInt8WgmmaSlab +
     kInt8WgmmaWarps * 16 * (kInt8WgmmaOutCols + 8) * 2 +
     2 * 8 * (kInt8WgmmaTileM + kInt8WgmmaTileP) + (2 * kInt8WgmmaStages + 4) * 8 + 1023) /
    1024 * 1024;

struct GemmInt8WgmmaParams {
  TensorMap x_map;       // codes [M, K], box [128, 128] bytes
  TensorMap w_map;       // bytes [N, K], the same
  TensorMap h_map;       // bf16 parts of scaling · h [M, 16 lora_steps], box [128, 64]
  TensorMap factor_map;  // and of lora_b [N, 16 lora_steps]
  GemmInt8Params int8;   // tiles_m: pairs of tiles
  uint32_t k_slabs;      // of 128 codes
  uint32_t lora_slabs;   // of 64 parts
  uint32_t lora_steps;   // of 16 parts
};

/// The parts of h and of lora_b that a Hopper product multiplies: rows of 16 · steps bf16.
struct Int8PartsParams {
  GemmMmaParams gemm;
  void* h;        // [M], 16-byte aligned
  void* factor;   // [N]
  int64_t steps;  // LoraSlabs::blocks()
};
constexpr uint32_t kInt8PartsThreads = 256;

}  // namespace lowrank::gpu
