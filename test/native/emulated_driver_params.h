#pragma once

#include <cstdint>

namespace lowrank::test {

struct AddParams {
  const float* x;  // [n]
  float* y;        // [n]
  uint32_t n;
  float value;
};

struct AppendParams {
  uint32_t* log;  // a count, then that many entries
  uint32_t value;
  uint32_t microseconds;
};

struct NeighbourParams {
  float* y;  // [64]
  uint32_t racy;
};

struct WildParams {
  uint32_t* y;
  int64_t index;
};

struct LargeParams {
  uint32_t* y;
  uint32_t padding[998];
  uint32_t last;
};

}  // namespace lowrank::test
