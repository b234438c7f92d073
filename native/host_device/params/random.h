#pragma once

#include <cstdint>

namespace lowrank::gpu {

constexpr uint32_t kRandomThreads = 128;  // four elements each

struct RandomParams {
  void* y;
  int64_t elems;
  uint64_t seed;
  double mean;
  double scale;
  uint32_t normal;  // or uniform
  uint32_t vector;  // y is aligned to four of its elements
};

}  // namespace lowrank::gpu
