/// The halves of a LoRA layer's backward pass on either side of dh, which plan_lora_backward.cpp
/// puts together.
#pragma once

#include "native/cuda/plan.h"

namespace lowrank::cuda {

/// Over one pass of dy: dh = scaling · dy · lora_b, d_lora_b, d_bias, and d_lora_bias = scaling ·
/// d_bias where present.
Status PlanExpandBackward(const LoraExpandBackwardOp& op, const TensorView& d_lora_bias,
                          bool accumulate_d_lora_bias, const DeviceLimits& device,
                          Workspace* workspace, Plan* plan);

}  // namespace lowrank::cuda
