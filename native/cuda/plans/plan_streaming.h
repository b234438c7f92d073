/// What the plans of the streaming kernels share.
#pragma once

#include <cstdint>
#include <string>

#include "native/cuda/plans/plan.h"

namespace lowrank::cuda {

constexpr uint32_t Log2(int64_t power_of_two) {
  uint32_t log2 = 0;
  while ((int64_t{1} << log2) < power_of_two) ++log2;
  return log2;
}

/// Most blocks of a grid along y or z.
constexpr int64_t kMostGridRows = 65535;

/// A grid of `items` at `items_per_block`, along x. A grid has fewer than 2^31 blocks: 2^40
/// elements and more.
inline Status SetGrid(const char* op, int64_t items, int64_t items_per_block, LaunchStep* step) {
  const int64_t blocks = CeilDiv(items, items_per_block);
  if (blocks > 0x7fffffff) {
    return Refuse(Code::kUnsupported, op, "operand", "of fewer than 2^31 tiles on this device",
                  std::to_string(blocks));
  }
  step->grid.x = static_cast<uint32_t>(blocks);
  return Status();
}

}  // namespace lowrank::cuda
