/// Products of int8 codes on tensor cores (cuda/int8/matmul_int8_sm80.cu): Compute::kInt8 with
/// rowwise weights.
#pragma once

#include "native/cuda/plans/products/plan_gemm_mma.h"

namespace lowrank::cuda {

/// y = x · wᵀ + bias + scaling · (h · lora_bᵀ + lora_bias) on codes: one launch quantises x, one
/// computes the product. Forward only, K > 0, with a rowwise weight; x and y of any dtype.
Status PlanGemmInt8(const GemmMmaOperands& operands, const DeviceLimits& device,
                    Workspace* workspace, Plan* plan);

}  // namespace lowrank::cuda
