/// Batches whose rows have different adapters: shared by its two plans (plan_grouped.cpp).
#pragma once

#include <vector>

#include "native/cuda/plans/plan.h"

namespace lowrank::cuda {

/// The list, followed by the numbers of [0, all) that are not in it.
std::vector<int32_t> WithOthers(const int32_t* list, int64_t count, int64_t all);

/// Is one product per adapter's rows faster (plan_grouped_segments.cpp)? Depends on how many rows
/// each adapter has, not on where they are.
bool TakesSegments(const GroupedForwardOp& op, const DeviceLimits& device);
bool TakesSegments(const GroupedBackwardOp& op, const DeviceLimits& device);

/// The plan with one product per adapter.
Status PlanSegments(const GroupedForwardOp& op, const DeviceLimits& device, Workspace* workspace,
                    Plan* plan);
Status PlanSegments(const GroupedBackwardOp& op, const DeviceLimits& device, Workspace* workspace,
                    Plan* plan);

}  // namespace lowrank::cuda
