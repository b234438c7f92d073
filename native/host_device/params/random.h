#pragma once

#include <cstdint>

namespace lowrank::gpu {

constexpr uint32_t kRandomThreads = 128;  // four elements each

/// As RandomOp::Kind numbers it.
enum RandomDraw : uint32_t { kRandomNormal, kRandomUniform, kRandomKeep };

struct RandomParams {
  void* y;
  int64_t elems;
  uint64_t seed;
  const uint64_t* seed_at;  // added to it; may be null
  double mean;
  double scale;
  RandomDraw draw;
  uint32_t threshold;  // of kRandomKeep
  uint32_t vector;     // y is aligned to four of its elements
};

}  // namespace lowrank::gpu
