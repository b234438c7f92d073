/// The argument of the tiled tensor-core products (cuda/mma/matmul_mma_sm80.cu).
#pragma once

#include <cstdint>

#include "native/host_device/params/parts/expert_slots.h"

namespace lowrank::gpu {

/// Element types by number, in the order of lowrank::DType.
enum ElementCode : uint8_t { kElementF32 = 0, kElementBF16 = 1, kElementF16 = 2 };

/// A base weight w [N, K], row-major: dense, or codes with a scale per block (QuantView's layout).
/// Every pointer is a device pointer.
struct GemmMmaWeight {
  const void* data;              // codes [N · K / 2] or [N · K] u8, or dense [N, K]
  const float* codebook;         // [16] or [256]; null where dense
  const float* absmax;           // [blocks], null with double quantisation
  const uint8_t* absmax_8bit;    // [blocks]
  const float* absmax_codebook;  // [256]
  const float* nested_absmax;    // [ceil(blocks / nested_blocksize)]
  const float* absmax_offset;    // [1]
  int64_t nested_blocksize;      // blocks
  int32_t nested_log2;           // of nested_blocksize where that is a power of two (fast kernels)
  int32_t blocksize_log2;
  int32_t scale_span_log2;  // elements along k that one staged scale covers: 5 or 6 (fast kernels)
  uint8_t bits;             // 4 or 8; 0 is dense
  uint8_t dense_dtype;      // ElementCode
};

/// y [M, N] = x · wᵀ + bias + scaling · (h · lora_bᵀ + lora_bias), or transposed
/// y [M, K] = x [M, N] · w + gate ⊙ (scaling · h · lora_a)
struct GemmMmaParams {
  const void* x;          // [M, K], transposed [M, N]; T
  void* y;                // [M, N], transposed [M, K]; T
  GemmMmaWeight w;        // [N, K]
  const void* bias;       // [1, N] or null
  const float* h;         // [M, r] or null
  const void* factor;     // lora_b [N, r], transposed lora_a [r, K]
  const void* lora_bias;  // [1, N] or null
  const void* mask;       // [M, K] or null
  uint64_t seed;          // of the dropout draws
  int64_t M, N, K, r;
  float* planes;   // [splits, M, P] f32 where splits > 1, else null
  int32_t splits;  // of the reduction: gridDim.y; their planes are summed by another kernel
  int32_t slabs_per_split;  // of 64, a multiple of 8
  int64_t tiles_p;          // tiles along y's columns; a block's tile is blockIdx.x
  uint32_t threshold;       // DropoutThreshold(p)
  float kept_scale;         // 1 / (1 - p)
  float scaling;            // 1 where transposed
  int32_t split_pairs;  // products of h's and the factor's bf16 parts: 3, 5 or 6; 0 without LoRA
  uint8_t bias_dtype;   // ElementCode, as those below
  uint8_t factor_dtype;
  uint8_t lora_bias_dtype;
  uint8_t mask_dtype;
  bool w_transposed;
  bool gated;           // dropout by seed, or by mask where given
  bool accumulate;      // add to what y holds
  bool x_made;          // a launch of the op writes x: none of it is read before that has ended
  bool vector_store;    // rows of y are whole 16-byte pieces, 16-byte aligned
  bool vector_factors;  // so are h's and the factor's rows
};

/// The same of every expert with its own slots: M counts the slots, and x's rows are those of
/// `slots` or, transposed, the slots. N is that of one expert. w, bias, lora_b [experts · N, r] and
/// lora_a [experts · r, K] have the experts one after another. Slots without an expert get zeros.
struct ExpertsMmaParams {
  GemmMmaParams product;  // without splits
  ExpertSlots slots;
  bool shared_factor;  // one lora_b [N, r] or lora_a [r, K] for all
};

/// Bytes of shared memory of a kernel: stages of x and tiles of w, and before them the codes'
/// stages, the staged scales and the codebook. At the end the output is staged over all of them.
/// `bits` is 0 if the weight needs no codes.
constexpr uint32_t GemmMmaSharedBytes(uint32_t bits, bool transposed, uint32_t tile_m,
                                      uint32_t tile_p, uint32_t stages, bool direct) {
  const uint32_t codes = stages * tile_p * 8 * bits;
  const uint32_t scales =
      2 * 4 * (transposed ? tile_p / 32 * (tile_p == 64 ? 80 : 72) : 8 * (tile_p + 4));
  const uint32_t codebook = (bits == 4 ? 16 : 256) * 4;
  const uint32_t source = bits == 0 ? 0 : (codes + scales + codebook + 127) / 128 * 128;
  const uint32_t tiles = (direct ? stages : 2) * tile_p * 128;
  const uint32_t main_loop = source + stages * tile_m * 128 + tiles;
  const uint32_t staged_output = tile_m * (tile_p + 8) * 4;
  return main_loop > staged_output ? main_loop : (staged_output + 127) / 128 * 128;
}

// clang-format off

/// X(op, transposed, format, kFormat, bits, dtype, Element, tile_m, tile_p, stages, min_blocks):
/// every kernel, named <op>_mma_<format>_<dtype>_<tile_m>x<tile_p>_kernel.
#define LOWRANK_GEMM_MMA_FORMATS(X, op, transposed, tile_m, tile_p, stages, min_blocks)              \
  X(op, transposed, code4, kCode4, 4, bf16, ElementBF16T, tile_m, tile_p, stages, min_blocks)        \
  X(op, transposed, code4, kCode4, 4, f16, ElementF16T, tile_m, tile_p, stages, min_blocks)          \
  X(op, transposed, code8, kCode8, 8, bf16, ElementBF16T, tile_m, tile_p, stages, min_blocks)        \
  X(op, transposed, code8, kCode8, 8, f16, ElementF16T, tile_m, tile_p, stages, min_blocks)          \
  X(op, transposed, dense, kDense, 0, bf16, ElementBF16T, tile_m, tile_p, stages, min_blocks)        \
  X(op, transposed, dense, kDense, 0, f16, ElementF16T, tile_m, tile_p, stages, min_blocks)
#define LOWRANK_GEMM_MMA_KERNELS(X)                                                                  \
  LOWRANK_GEMM_MMA_FORMATS(X, matmul, false, 128, 128, 2, 2)                                         \
  LOWRANK_GEMM_MMA_FORMATS(X, matmul, false, 64, 64, 2, 3)                                           \
  LOWRANK_GEMM_MMA_FORMATS(X, input_grad, true, 128, 128, 2, 2)                                      \
  LOWRANK_GEMM_MMA_FORMATS(X, input_grad, true, 64, 64, 2, 3)                                        \
  X(matmul, false, general, kGeneral, 0, bf16, ElementBF16T, 64, 64, 2, 2)                           \
  X(matmul, false, general, kGeneral, 0, f16, ElementF16T, 64, 64, 2, 2)                             \
  X(input_grad, true, general, kGeneral, 0, bf16, ElementBF16T, 64, 64, 2, 2)                        \
  X(input_grad, true, general, kGeneral, 0, f16, ElementF16T, 64, 64, 2, 2)

/// The kernels of experts, of ExpertsMmaParams.
#define LOWRANK_EXPERTS_MMA_KERNELS(X)                                                               \
  LOWRANK_GEMM_MMA_FORMATS(X, experts, false, 128, 128, 2, 2)                                        \
  LOWRANK_GEMM_MMA_FORMATS(X, experts, false, 64, 64, 2, 3)                                          \
  LOWRANK_GEMM_MMA_FORMATS(X, experts_grad, true, 128, 128, 2, 2)                                    \
  LOWRANK_GEMM_MMA_FORMATS(X, experts_grad, true, 64, 64, 2, 3)                                      \
  X(experts, false, general, kGeneral, 0, bf16, ElementBF16T, 64, 64, 2, 2)                          \
  X(experts, false, general, kGeneral, 0, f16, ElementF16T, 64, 64, 2, 2)                            \
  X(experts_grad, true, general, kGeneral, 0, bf16, ElementBF16T, 64, 64, 2, 2)                      \
  X(experts_grad, true, general, kGeneral, 0, f16, ElementF16T, 64, 64, 2, 2)

// clang-format on

/// X(dtype, Element): gemm_mma_reduce_<dtype>_kernel, which sums the planes. A thread computes
/// eight neighbours of a row.
#define LOWRANK_GEMM_MMA_REDUCE_KERNELS(X) \
  X(bf16, ElementBF16T)                    \
  X(f16, ElementF16T)
constexpr uint32_t kGemmMmaReduceThreads = 256;

}  // namespace lowrank::gpu
