/// What a call becomes on a device with these limits.
#pragma once

#include "native/core/ops/explain.h"
#include "native/cuda/plans/plan.h"

namespace lowrank::cuda {

/// Fails where the call has no such ops, or no kernel takes one.
Status Explain(const DeviceLimits& limits, const std::string& card, const CallShape& shape,
               Explanation* explanation);

}  // namespace lowrank::cuda
