/// Shared by the plans of the streaming kernels.
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

/// The most blocks that a grid may have along y or z.
constexpr int64_t kMostGridRows = 65535;

/// A grid for `items` along x, `items_per_block` each. Fails at 2^31 blocks, which takes 2^40
/// elements or more.
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
