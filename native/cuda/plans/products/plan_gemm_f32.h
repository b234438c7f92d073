/// Products in f32 arithmetic, with the LoRA term in the same accumulators.
#pragma once

#include "native/cuda/plans/products/plan_gemm_mma.h"

namespace lowrank::cuda {

/// PlanGemmMma's sums from f32 x and w, of any shape and alignment. 16-bit x is widened in the
/// workspace first: the path of f32 weights under 16-bit activations, whose products no 16-bit
/// operand holds.
Status PlanGemmF32(const GemmMmaOperands& operands, const DeviceLimits& device,
                   Workspace* workspace, Plan* plan);

}  // namespace lowrank::cuda
