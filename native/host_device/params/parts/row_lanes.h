/// How lanes of a block share rows.
#pragma once

#include <cstdint>

namespace lowrank::gpu {

constexpr uint32_t kRowThreads = 256;

struct RowSumShared {
  double warps[kRowThreads / 32];
};

}  // namespace lowrank::gpu
