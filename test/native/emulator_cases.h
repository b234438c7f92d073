/// The parameters of every kernel in emulator_cases.cu.
#pragma once

#include <cstdint>

struct EmulatorCaseParams {
  float* y;           // [128 · grid] unless a case says otherwise
  const float* x;     // [512], all 1
  float* scratch;     // [128 · grid], uninitialised
  uint32_t* counter;  // one word, 0
};
