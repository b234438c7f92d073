/// The parameters of every kernel in hopper_cases.cu.
#pragma once

#include <cstdint>

struct HopperCaseParams {
  float* y;           // [128 · grid], and as much for the blocks to write to
  float* x;           // [128], written by case_fill_x where a case launches it first
  uint32_t* counter;  // two words, 0
};
