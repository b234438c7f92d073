/// What the loops of the device "reference" share, and its product of int8 codes.
#pragma once

#include <algorithm>
#include <vector>

#include "native/cpu/kernel_table.h"

namespace lowrank::cpu::reference {

/// Leaves the loops of an op whose environment is closing. The op's caller catches it.
struct Stop {};

inline void Poll(const RunContext& context) {
  if (context.cancelled()) throw Stop();
}

/// Calls body(i) for i < count, and polls about every millisecond.
template <typename Body>
void ForEach(const RunContext& context, int64_t count, const Body& body) {
  constexpr int64_t kElems = 16384;
  for (int64_t begin = 0; begin < count; begin += kElems) {
    Poll(context);
    for (int64_t i = begin; i < std::min(begin + kElems, count); ++i) body(i);
  }
}

/// x · wᵀ with both rounded to int8 codes (Compute::kInt8), [M · N]. The codes and their scales
/// have the bits of the definition; sums are exact within a segment and in double across segments.
std::vector<double> Int8Product(const TensorView& x, const QuantView& w, const RunContext& context);

}  // namespace lowrank::cpu::reference
