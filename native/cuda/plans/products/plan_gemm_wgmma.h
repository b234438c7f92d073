/// The Hopper plan for large M: a bounded panel of w in 16 bits, then TMA and wgmma.
#pragma once

#include <vector>

#include "native/cuda/plans/factors/plan_lora_grad.h"
#include "native/cuda/plans/products/plan_gemm_mma.h"

namespace lowrank::cuda {

/// True if this plan is the better one: sm_90, 16-bit activations, M of at least 385, and tiles of
/// 128 x 128 for half of the multiprocessors. Other plans take what it rejects.
bool WgmmaTakes(const GemmMmaOperands& operands, const DeviceLimits& device);

/// True if the plan can compute h, or dh, itself and gains by it: r <= 64 for bf16 factors and r <=
/// 32 for others, rows of x and lora_a that are 16-byte aligned, and a first panel of enough tiles
/// to hide it; with a gate on x, r <= 32 and r <= 16.
bool WgmmaShrinks(const GemmMmaOperands& operands, const DeviceLimits& device);

/// A factor's gradient that a product's spare warps compute.
struct WgmmaGrad {
  LoraGradOperands operands;  // no column sums; dropout is that of the product
  LoraGradPlanes planes;      // set by the plan, for a later LoraReduction
};
/// True if they can and have the time: r <= 16, f32 factors (an h that is given, or the product's
/// own from its second launch on), x of the product's dtype with 16-byte aligned rows.
bool WgmmaHidesGrads(const GemmMmaOperands& operands, const std::vector<WgmmaGrad>& grads,
                     const DeviceLimits& device);

/// True if PlanProduct takes the plan below (with h computed in it if required), and that can take
/// the gradients with it.
bool ProductHidesGrads(const GemmMmaOperands& operands, const std::vector<WgmmaGrad>& grads,
                       const DeviceLimits& device);

/// y = x · wᵀ + bias + scaling · (h · lora_bᵀ + lora_bias), or, w_transposed, dx = dy · w + gate ⊙
/// (scaling · h · lora_a), appended to `plan`. Any M, N, K, r >= 1 and any alignment; needs sm 90.
/// One launch prepares (first panel of w, h and lora_b as bf16 parts, the sum of the biases, the
/// gate's bits), then there is one launch per panel. If shrink_factor is present, h (or dh) is
/// computed in the first of them, for any number of columns; `grads` in all of them.
Status PlanGemmWgmma(const GemmMmaOperands& operands, const DeviceLimits& device,
                     Workspace* workspace, Plan* plan, std::vector<WgmmaGrad>* grads = nullptr);

}  // namespace lowrank::cuda
