/// The argument of the f32 products (cuda/simt/gemm_f32_sm80.cu).
#pragma once

#include <cstdint>

#include "native/host_device/params/gemm_mma.h"

namespace lowrank::gpu {

/// One contraction: sums over c < C of x[m, c] · w[p, c], or of x[m, c] · w[c, p] if transposed.
struct GemmF32Pass {
  const float* x;   // [M, C]
  GemmMmaWeight w;  // [P, C], transposed [C, P]
  int64_t C;        // 0: the pass is left out
  float scale;      // of w's elements
  bool vector_x;    // rows of x are whole 16-byte pieces, 16-byte aligned
  bool vector_w;  // eight elements of w from a multiple of eight are one aligned read of one block
};

/// y [M, P] = gate ⊙ (passes[0]) + passes[1] + bias + scaling · lora_bias (+ y)
struct GemmF32Params {
  GemmF32Pass passes[2];  // the LoRA term, then the base product
  void* y;                // [M, P]
  const void* bias;       // [1, P] or null
  const void* lora_bias;  // [1, P] or null
  const void* mask;       // [M, P] or null
  uint64_t seed;          // of the dropout draws
  int64_t M, P;
  int64_t tiles_p;     // tiles along y's columns; a block's tile is blockIdx.x
  uint32_t threshold;  // DropoutThreshold(p)
  float kept_scale;    // 1 / (1 - p)
  float scaling;       // of lora_bias
  uint8_t y_dtype;     // ElementCode, as those below
  uint8_t bias_dtype;
  uint8_t lora_bias_dtype;
  uint8_t mask_dtype;
  bool gated;       // dropout by seed, or by mask where given
  bool accumulate;  // add to what y holds
};

/// The same of every expert with its own slots: M counts the slots, and the rows of the base
/// product's x are those of `slots`. P is that of one expert; w, bias and the factor have the
/// experts one after another. Slots without an expert get zeros.
struct ExpertsF32Params {
  GemmF32Params product;
  ExpertSlots slots;
  bool shared_factor;  // one for all
};

}  // namespace lowrank::gpu
