/// Products of f32 activations, with the LoRA term in the same accumulators.
#pragma once

#include "native/cuda/plan_gemm_mma.h"

namespace lowrank::cuda {

/// PlanGemmMma's sums for f32 x and y, of any shape and alignment.
Status PlanGemmF32(const GemmMmaOperands& operands, const DeviceLimits& device,
                   Workspace* workspace, Plan* plan);

}  // namespace lowrank::cuda
