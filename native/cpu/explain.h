/// Which routes a call takes with a table of kernels.
#pragma once

#include "native/core/ops/explain.h"
#include "native/cpu/kernel_table.h"

namespace lowrank::cpu {

/// `kernels` has routes. Fails where the call has no such ops.
Status Explain(const KernelTable& kernels, int threads, const CallShape& shape,
               Explanation* explanation);

}  // namespace lowrank::cpu
