/// The adapter's view of an activation: h = (gate ⊙ x) · lora_aᵀ, and dh = scaling · dy · lora_b.
#pragma once

#include "native/cuda/plan.h"

namespace lowrank::cuda {

/// How the small factor of a shrink lies in memory.
enum class ShrinkFactor {
  kRankMajor,         // lora_a [r, K]: the contraction runs along a row
  kContractionMajor,  // lora_b [N, r]: the contraction runs down a column
};

/// out [M, r] (+)= scaling · (gate ⊙ x) · factor, contracted over the columns of x [M, K]. With a
/// gate the factor 1 / (1 - p) of the kept elements is included. `out` is f32, row-major, and may
/// be workspace. Appends one launch, or two where K is split over blocks or `out` is added to; with
/// M or r = 0 none, with K = 0 the one that stores zeros.
Status PlanLoraShrink(const TensorView& x, const TensorView& factor, ShrinkFactor layout,
                      const DropoutSpec& dropout, float scaling, float* out, bool accumulate,
                      const DeviceLimits& device, Workspace* workspace, Plan* plan);

}  // namespace lowrank::cuda
