/// Parameters of the kernels of root-mean-square norms.
#pragma once

#include "native/host_device/params/elementwise.h"
#include "native/host_device/params/parts/row_lanes.h"

namespace lowrank::gpu {

// Elements of each row of the operands that a lane keeps in registers.
constexpr int64_t kRmsNormHeld = 32;
constexpr int64_t kRmsNormBackwardHeld = 16;

/// RmsNormOp
struct RmsNormParams {
  SmallOperand x;
  SmallOperand residual;
  SmallOperand g;
  SmallOperand sum;
  SmallOperand y;
  float* inv_rms = nullptr;  // [rows], or null
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t row_runs = 0;   // of a row, the last one perhaps short
  int32_t row_lanes = 1;  // lanes that share a row: a power of two
  int32_t plus_one = 0;
  float eps = 0;
};

/// dx of RmsNormBackwardOp
struct RmsNormBackwardParams {
  SmallOperand dy;
  SmallOperand s;
  SmallOperand g;
  SmallOperand d_sum;
  SmallOperand dx;
  const float* inv_rms = nullptr;  // [rows]
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t row_runs = 0;
  int32_t row_lanes = 1;
  int32_t plus_one = 0;
};

}  // namespace lowrank::gpu
