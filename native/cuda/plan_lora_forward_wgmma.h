/// The Hopper plan of large-M products: a bounded panel of w in 16 bits, then TMA and wgmma.
#pragma once

#include "native/cuda/plan.h"

namespace lowrank::cuda {

/// The operands of one 16-bit product; what is not present takes no part.
struct LoraForwardWgmmaOperands {
  TensorView x;              // [M, K] bf16 | f16
  WeightView w;              // [N, K] quantised, or dense of x's dtype
  TensorView bias;           // [1, N] of any dtype
  const float* h = nullptr;  // [M, r] f32, computed by an earlier step of the same plan
  TensorView lora_b;         // [N, r] of any dtype; not present: no LoRA term
  TensorView lora_bias;      // [1, N] of any dtype
  float scaling = 1;         // of the LoRA term and lora_bias
  TensorView y;              // [M, N] out, dtype of x
};

/// True where this plan is the better one: sm_90, 16-bit activations, M from 385 and tiles of
/// 128 x 128 for half of the multiprocessors. Everything it refuses is some other plan's.
bool WgmmaTakes(const LoraForwardWgmmaOperands& operands, const DeviceLimits& device);

/// y = x · wᵀ + bias + scaling · (h · lora_bᵀ + lora_bias), appended to `plan`. Any M, N, K, r >= 1
/// and any alignment; needs sm 90. One launch that prepares (first panel of w, h and lora_b as bf16
/// pieces, the sum of the biases), then one launch a panel.
Status PlanLoraForwardWgmma(const LoraForwardWgmmaOperands& operands, const DeviceLimits& device,
                            Workspace* workspace, Plan* plan);

}  // namespace lowrank::cuda
