/// What the plans of kernels over rows of any type share (cuda/common/runs.cuh).
#pragma once

#include "native/cuda/plans/plan.h"
#include "native/host_device/params/elementwise.h"

namespace lowrank::cuda {

static_assert(static_cast<int>(DType::kF32) == gpu::kSmallF32 &&
              static_cast<int>(DType::kBF16) == gpu::kSmallBF16 &&
              static_cast<int>(DType::kF16) == gpu::kSmallF16);

/// An operand that is applied to rows of `cols` elements.
gpu::SmallOperand SmallOperandOf(const TensorView& view, int64_t cols);

/// Launches of a SumProductOp; over its rows (axis 0) with b's rows times row_scale [rows], if
/// that is not null.
Status PlanSumProduct(const SumProductOp& op, const float* row_scale, const DeviceLimits& device,
                      Workspace* workspace, Plan* plan);

}  // namespace lowrank::cuda
