/// The experts of a row and their gates, in double with the bits of map_function.h: what the host's
/// and the GPU's kernels share.
#pragma once

#include "native/host_device/map_function.h"

namespace lowrank {

/// Is a chosen before b? NaN counts as the largest. The first of equal ones is kept, because a
/// later one does not come before it.
LOWRANK_MAP_INLINE bool ComesBefore(float a, float b) { return a > b || (a != a && b == b); }

/// e^(logit - largest), which is in (0, 1] unless one of both is not finite.
LOWRANK_MAP_INLINE double GateTerm(float logit, float largest) {
  return ExpOf(static_cast<double>(logit) - static_cast<double>(largest));
}

}  // namespace lowrank
