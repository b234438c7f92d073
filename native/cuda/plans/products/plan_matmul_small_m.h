/// Products of few tokens (1 <= M <= 64), bound by the weight's bytes, and on Hopper of up to 1,024
/// with 4-bit codes, where these are decoded into wgmma's registers.
#pragma once

#include "native/cuda/plans/products/plan_gemm_mma.h"

namespace lowrank::cuda {

/// Does the small-M family take this product? It is forward only (y = x · wᵀ), from 16-bit
/// activations, of weights whose every row is whole 16-byte pieces (K a multiple of 32 for 4-bit
/// codes, of 16 for 8-bit, of 8 dense), with 16-byte aligned x and w, and a dense w of x's dtype.
/// Everything else is the tiled product's.
bool SmallMApplies(const GemmMmaOperands& operands, const DeviceLimits& device);

/// y = x · wᵀ + bias + scaling · (h · lora_bᵀ + lora_bias), where SmallMApplies() holds. `h` is
/// written by an earlier step of the same plan.
Status PlanMatmulSmallM(const GemmMmaOperands& operands, const DeviceLimits& device,
                        Workspace* workspace, Plan* plan);

/// plan_gemm_mma.h's PlanProductPlanes, of x · wᵀ of at most 64 tokens, by mma.sync.
bool SmallMPlanesApply(const GemmMmaOperands& operands, const DeviceLimits& device);
Status PlanMatmulSmallMPlanes(const GemmMmaOperands& operands, float* sums,
                              const DeviceLimits& device, Workspace* workspace, Plan* plan,
                              ProductPlanes* planes);

}  // namespace lowrank::cuda
