/// Products in f32 arithmetic, with the LoRA term in the same accumulators.
#pragma once

#include "native/cuda/plans/products/plan_gemm_mma.h"

namespace lowrank::cuda {

/// The sums of PlanGemmMma from f32 x and w, of any shape and alignment. 16-bit x is first widened
/// in the workspace: this is the path of f32 weights with 16-bit activations, since no 16-bit
/// operand can hold those weights.
Status PlanGemmF32(const GemmMmaOperands& operands, const DeviceLimits& device,
                   Workspace* workspace, Plan* plan);

}  // namespace lowrank::cuda
