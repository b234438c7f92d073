/// Batches whose rows have different adapters: what its two ways share (plan_grouped.cpp).
#pragma once

#include <vector>

#include "native/cuda/plans/plan.h"

namespace lowrank::cuda {

/// The list, and behind it those of [0, all) that are not in it.
std::vector<int32_t> WithOthers(const int32_t* list, int64_t count, int64_t all);

/// Is a product for each adapter's rows the better way (plan_grouped_segments.cpp)? By how many
/// rows each adapter has, not by where they lie.
bool TakesSegments(const GroupedForwardOp& op, const DeviceLimits& device);
bool TakesSegments(const GroupedBackwardOp& op, const DeviceLimits& device);

/// The plan of that way.
Status PlanSegments(const GroupedForwardOp& op, const DeviceLimits& device, Workspace* workspace,
                    Plan* plan);
Status PlanSegments(const GroupedBackwardOp& op, const DeviceLimits& device, Workspace* workspace,
                    Plan* plan);

}  // namespace lowrank::cuda
