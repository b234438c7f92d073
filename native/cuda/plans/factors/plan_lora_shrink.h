/// The adapter's view of an activation: h = (gate ⊙ x) · lora_aᵀ, and dh = scaling · dy · lora_b.
#pragma once

#include "native/cuda/plans/plan.h"

namespace lowrank::cuda {

/// How the small factor of a shrink lies in memory.
enum class ShrinkFactor {
  kRankMajor,         // lora_a [r, K]: the contraction runs along a row
  kContractionMajor,  // lora_b [N, r]: the contraction runs down a column
};

/// out [M, r] (+)= scaling · (gate ⊙ x) · factor, contracted over the columns of x [M, K]. With a
/// gate the factor 1 / (1 - p) of the kept elements is included. `out` is f32, row-major, and may
/// be workspace. Appends one launch, or two where K is split over blocks, but in a cluster of a
/// Hopper card, or `out` is added to; with
/// M or r = 0 none, with K = 0 the one that stores zeros.
Status PlanLoraShrink(const TensorView& x, const TensorView& factor, ShrinkFactor layout,
                      const DropoutSpec& dropout, float scaling, float* out, bool accumulate,
                      const DeviceLimits& device, Workspace* workspace, Plan* plan);

/// What a shrink leaves where nothing has added its parts of K yet.
struct LoraShrinkPlanes {
  const float* planes = nullptr;  // plane s from element s · plane_elems on
  int64_t plane_elems = 0;
  int64_t count = 0;  // 0: K = 0, and all sums are 0
};
/// x · xᵀ [M, M] by one launch, as planes in the workspace. Where `rounded` is present, x is f32,
/// and the launch leaves it there in a 16-bit dtype: whoever reads that must not begin before.
LoraShrinkPlanes PlanLoraSquare(const TensorView& x, const TensorView& rounded,
                                const DeviceLimits& device, Workspace* workspace, Plan* plan);

}  // namespace lowrank::cuda
