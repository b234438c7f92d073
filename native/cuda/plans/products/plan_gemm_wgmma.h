/// The Hopper plan of large-M products: a bounded panel of w in 16 bits, then TMA and wgmma.
#pragma once

#include <vector>

#include "native/cuda/plans/factors/plan_lora_grad.h"
#include "native/cuda/plans/products/plan_gemm_mma.h"

namespace lowrank::cuda {

/// True where this plan is the better one: sm_90, 16-bit activations, M from 385 and tiles of
/// 128 x 128 for half of the multiprocessors. Everything it refuses is some other plan's.
bool WgmmaTakes(const GemmMmaOperands& operands, const DeviceLimits& device);

/// True where the plan can, and had better, compute h, or dh, itself: r <= 64 of bf16 factors and
/// r <= 32 of others, rows of x and lora_a that are 16-byte aligned, and a first panel of enough
/// tiles to hide it behind; behind a gate of x r <= 32 and r <= 16.
bool WgmmaShrinks(const GemmMmaOperands& operands, const DeviceLimits& device);

/// A factor's gradient that a product's spare warps compute.
struct WgmmaGrad {
  LoraGradOperands operands;  // no column sums; dropout is the product's own, of an x like its y
  LoraGradPlanes planes;      // set by the plan, for LoraReduction after it
};
/// True where they can and have the time: r <= 16, f32 factors (h that is given, or the product's
/// own from its second launch on), x of the product's dtype with 16-byte aligned rows.
bool WgmmaHidesGrads(const GemmMmaOperands& operands, const std::vector<WgmmaGrad>& grads,
                     const DeviceLimits& device);

/// True where PlanProduct takes the plan below, h computed in it where that is asked for, and that
/// can take the gradients with it.
bool ProductHidesGrads(const GemmMmaOperands& operands, const std::vector<WgmmaGrad>& grads,
                       const DeviceLimits& device);

/// y = x · wᵀ + bias + scaling · (h · lora_bᵀ + lora_bias), or, w_transposed,
/// dx = dy · w + gate ⊙ (scaling · h · lora_a), appended to `plan`. Any M, N, K, r >= 1 and any
/// alignment; needs sm 90. One launch that prepares (first panel of w, h and lora_b as bf16 parts,
/// the sum of the biases, the gate's bits), then one launch a panel. Where shrink_factor is present
/// h, or dh, is computed in the first of them, for any number of columns; `grads`, beside them all.
Status PlanGemmWgmma(const GemmMmaOperands& operands, const DeviceLimits& device,
                     Workspace* workspace, Plan* plan, std::vector<WgmmaGrad>* grads = nullptr);

}  // namespace lowrank::cuda
