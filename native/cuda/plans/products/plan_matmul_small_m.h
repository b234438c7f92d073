/// Products of few tokens (1 <= M <= 64), bound by the weight's bytes; on Hopper with 4-bit codes
/// up to 1,024 tokens, with the codes decoded into wgmma's registers.
#pragma once

#include "native/cuda/plans/products/plan_gemm_mma.h"

namespace lowrank::cuda {

/// Does the small-M family take this product? It is forward only (y = x · wᵀ), for 16-bit
/// activations and weights whose rows are whole 16-byte pieces (K a multiple of 32 for 4-bit codes,
/// of 16 for 8-bit, of 8 dense), with 16-byte aligned x and w, and a dense w of x's dtype. The
/// tiled product takes everything else.
bool SmallMApplies(const GemmMmaOperands& operands, const DeviceLimits& device);

/// y = x · wᵀ + bias + scaling · (h · lora_bᵀ + lora_bias), if SmallMApplies() holds. `h` is
/// written by an earlier step of the same plan.
Status PlanMatmulSmallM(const GemmMmaOperands& operands, const DeviceLimits& device,
                        Workspace* workspace, Plan* plan);

/// PlanProductPlanes of plan_gemm_mma.h for x · wᵀ of at most 64 tokens, by mma.sync.
bool SmallMPlanesApply(const GemmMmaOperands& operands, const DeviceLimits& device);
Status PlanMatmulSmallMPlanes(const GemmMmaOperands& operands, float* sums,
                              const DeviceLimits& device, Workspace* workspace, Plan* plan,
                              ProductPlanes* planes);

}  // namespace lowrank::cuda
