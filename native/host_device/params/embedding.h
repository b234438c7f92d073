/// Parameters of the kernels that gather rows of a table.
#pragma once

#include "native/host_device/params/elementwise.h"
#include "native/host_device/params/gemm_mma.h"
#include "native/host_device/params/parts/row_lanes.h"

namespace lowrank::gpu {

struct EmbeddingShared {
  float codebook[256];
};

/// EmbeddingOp
struct EmbeddingParams {
  GemmMmaWeight table{};         // [V, cols]
  const int32_t* ids = nullptr;  // [rows], -1 for none
  SmallOperand y;                // [rows, cols]
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t row_runs = 0;   // of eight elements, the last one perhaps short
  int32_t row_lanes = 1;  // lanes that share a row: a power of two
  int32_t vector = 0;     // runs of the table are whole words of one block
  float scale = 1;
};

}  // namespace lowrank::gpu
