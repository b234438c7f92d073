/// The adapter's view of an activation: h = (gate ⊙ x) · lora_aᵀ, and dh = scaling · dy · lora_b.
#pragma once

#include "native/cuda/plans/plan.h"

namespace lowrank::cuda {

/// How a shrink's small factor is stored.
enum class ShrinkFactor {
  kRankMajor,         // lora_a [r, K]: the contraction runs along a row
  kContractionMajor,  // lora_b [N, r]: the contraction runs down a column
};

/// out [M, r] (+)= scaling · (gate ⊙ x) · factor, contracted over the columns of x [M, K]. With a
/// gate the factor 1 / (1 - p) of the kept elements is included. `out` is f32, row-major, and may
/// be workspace. Appends one launch; two if K is split over blocks that do not form a Hopper
/// cluster, or if `out` is added to. With M or r = 0 it appends none, with K = 0 the one that
/// stores zeros.
Status PlanLoraShrink(const TensorView& x, const TensorView& factor, ShrinkFactor layout,
                      const DropoutSpec& dropout, float scaling, float* out, bool accumulate,
                      const DeviceLimits& device, Workspace* workspace, Plan* plan);

/// The result of a shrink whose parts of K are not yet added.
struct LoraShrinkPlanes {
  const float* planes = nullptr;  // plane s starts at element s · plane_elems
  int64_t plane_elems = 0;
  int64_t count = 0;  // 0: K = 0, and all sums are 0
};
/// x · xᵀ [M, M] by one launch, as planes in the workspace. If `rounded` is present, x is f32 and
/// the launch stores it there in a 16-bit dtype: a kernel that reads that must not start earlier.
LoraShrinkPlanes PlanLoraSquare(const TensorView& x, const TensorView& rounded,
                                const DeviceLimits& device, Workspace* workspace, Plan* plan);

}  // namespace lowrank::cuda
