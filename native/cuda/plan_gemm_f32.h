/// Products of f32 activations, with the LoRA term in the same accumulators.
#pragma once

#include "native/cuda/plan.h"

namespace lowrank::cuda {

/// The operands of one f32 product; what is not present takes no part.
struct GemmF32Operands {
  TensorView x;               // [M, K] f32; dy [M, N] where w_transposed
  WeightView w;               // [N, K] dense of any dtype, or quantised
  bool w_transposed = false;  // false: y = x · wᵀ, true: dx = dy · w
  TensorView bias;            // [1, N] of any dtype, forward only
  const float* h = nullptr;   // [M, r] f32: h, or dh (which carries the scaling already)
  TensorView lora_factor;     // lora_b [N, r] forward, lora_a [r, K] otherwise; of any dtype
  TensorView lora_bias;       // [1, N] of any dtype, forward only
  float scaling = 1;          // of the LoRA term and lora_bias
  DropoutSpec dropout;        // gate of the LoRA term, w_transposed only
  bool accumulate = false;    // add to what y holds
  TensorView y;               // [M, N] f32, or dx [M, K]
};

/// y = x · wᵀ + bias + scaling · (h · lora_bᵀ + lora_bias), or
/// dx = dy · w + gate ⊙ (scaling · h · lora_a)
Status PlanGemmF32(const GemmF32Operands& operands, const DeviceLimits& device,
                   Workspace* workspace, Plan* plan);

}  // namespace lowrank::cuda
