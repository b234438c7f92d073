/// The halves of a LoRA layer's backward pass on either side of dh, which plan_lora_backward.cpp
/// puts together.
#pragma once

#include "native/cuda/plans/factors/plan_lora_grad.h"
#include "native/cuda/plans/products/plan_gemm_mma.h"

namespace lowrank::cuda {

/// Over one pass of dy: dh = scaling · dy · lora_b, d_lora_b, d_bias, and d_lora_bias = scaling ·
/// d_bias where present.
Status PlanExpandBackward(const LoraExpandBackwardOp& op, const TensorView& d_lora_bias,
                          bool accumulate_d_lora_bias, const DeviceLimits& device,
                          Workspace* workspace, Plan* plan);

/// d_lora_b, if it is wanted, as sums over the rows of dy.
LoraGradOperands LoraBGradOperands(const LoraExpandBackwardOp& op);

/// dx as a product, with dh given.
GemmMmaOperands InputGradProduct(const LoraShrinkBackwardOp& op);

/// d_lora_a as sums over the rows of x, and which of the sums are d_lora_a.
LoraGradOperands LoraAGradOperands(const LoraShrinkBackwardOp& op);
void AddLoraAGrad(const LoraShrinkBackwardOp& op, const LoraGradPlanes& planes,
                  LoraReduction* reduction);

}  // namespace lowrank::cuda
