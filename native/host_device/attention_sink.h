/// A sink of attention: one more score of each row, without a value (Xiao et al., Efficient
/// Streaming Language Models with Attention Sinks, 2023, arXiv:2309.17453).
#pragma once

#include "native/host_device/map_function.h"

namespace lowrank {

/// log(e^lse + e^sink), in double.
LOWRANK_MAP_INLINE double SumWithSink(double lse, double sink) {
  const bool above = sink > lse;
  const double larger = above ? sink : lse;
  const double apart = above ? lse - sink : sink - lse;
  return larger + LogOf(1.0 + ExpOf(apart));
}

}  // namespace lowrank
