/// The Hopper plan of large-M products: a bounded panel of w in 16 bits, then TMA and wgmma.
#pragma once

#include "native/cuda/plan_gemm_mma.h"

namespace lowrank::cuda {

/// True where this plan is the better one: sm_90, 16-bit activations, M from 385 and tiles of
/// 128 x 128 for half of the multiprocessors. Everything it refuses is some other plan's.
bool WgmmaTakes(const GemmMmaOperands& operands, const DeviceLimits& device);

/// True where the plan can, and had better, compute h itself: r <= 16, rows of x and lora_a that
/// are 16-byte aligned, and a first panel of enough tiles to hide it behind.
bool WgmmaShrinks(const GemmMmaOperands& operands, const DeviceLimits& device);

/// y = x · wᵀ + bias + scaling · (h · lora_bᵀ + lora_bias), or, w_transposed,
/// dx = dy · w + gate ⊙ (scaling · h · lora_a), appended to `plan`. Any M, N, K, r >= 1 and any
/// alignment; needs sm 90. One launch that prepares (first panel of w, h and lora_b as bf16 pieces,
/// the sum of the biases, the gate's bits), then one launch a panel. Where lora_a is present, which
/// is forward only, h is computed in the first of them, for any number of columns.
Status PlanGemmWgmma(const GemmMmaOperands& operands, const DeviceLimits& device,
                     Workspace* workspace, Plan* plan);

}  // namespace lowrank::cuda
