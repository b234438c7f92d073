/// The argument of the tiled tensor-core products (cuda/matmul_mma_sm80.cu).
#pragma once

#include <cstdint>

namespace lowrank::gpu {

/// Element types by number, in the order of lowrank::DType.
enum ElementCode : uint8_t { kElementF32 = 0, kElementBF16 = 1, kElementF16 = 2 };

/// A base weight w [N, K], row-major: dense, or codes with a scale a block (QuantView's layout).
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
  int64_t tiles_p;      // tiles along y's columns; a block's tile is blockIdx.x
  uint32_t threshold;   // DropoutThreshold(p)
  float kept_scale;     // 1 / (1 - p)
  float scaling;        // 1 where transposed
  int32_t split_pairs;  // products of h's and the factor's bf16 parts: 3, 5 or 6; 0 without LoRA
  uint8_t bias_dtype;   // ElementCode, as those below
  uint8_t factor_dtype;
  uint8_t lora_bias_dtype;
  uint8_t mask_dtype;
  bool gated;           // dropout by seed, or by mask where given
  bool accumulate;      // add to what y holds
  bool vector_store;    // rows of y are whole 16-byte pieces, 16-byte aligned
  bool vector_factors;  // so are h's and the factor's rows
};

}  // namespace lowrank::gpu
