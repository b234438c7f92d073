/// Parameters of the kernels over small tensors.
#pragma once

#include <cstdint>

namespace lowrank::gpu {

constexpr uint32_t kElementwiseThreads = 256;
constexpr uint32_t kElementwiseUnroll = 2;  // runs of 16 bytes (of the narrower type) a thread
// Rows per step of a block of the column sums: one per warp.
constexpr uint32_t kSumWarps = 8;

// Distance in doubles between the places of a run in the column sums' shared memory.
constexpr int SumColsStride(int run) { return 32 + 16 / run; }

/// In DType's order.
enum SmallElement : int32_t { kSmallF32 = 0, kSmallBF16 = 1, kSmallF16 = 2 };

/// An operand beside [rows, cols] elements.
struct SmallOperand {
  const void* data = nullptr;  // null: absent
  int64_t row_elems = 0;       // from one row to the next; 0 if all rows are the same
  int32_t element = kSmallF32;
  int32_t one_col = 0;  // one element per row
  int32_t vector = 0;   // runs start at whole words
};

struct MultiplyAddParams {
  SmallOperand a;
  SmallOperand b;
  SmallOperand c;
  SmallOperand y;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t row_runs = 0;  // of a row, the last one perhaps short
  float alpha = 1;
  float beta = 1;
};

struct MapParams {
  SmallOperand a;
  SmallOperand y;
  int64_t elems = 0;
  int32_t function = 0;  // MapFunction
};

/// Without d_gate y = f(gate) ⊙ up; with it the gradients.
struct GateParams {
  SmallOperand dy;
  SmallOperand gate;
  SmallOperand up;
  SmallOperand y;
  SmallOperand d_gate;
  SmallOperand d_up;
  int64_t elems = 0;
};

/// One sum per row, by `row_warps` warps; or sums of columns, in planes of `rows_per_split` rows
/// each.
struct SumProductParams {
  SmallOperand a;
  SmallOperand b;
  const float* row_scale = nullptr;  // [rows], of b's rows, rounded to f32; null: 1
  float* out = nullptr;
  double* planes = nullptr;  // [splits, cols]; null: one split, straight to out
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t row_runs = 0;
  int64_t rows_per_split = 0;
  int32_t row_warps = 1;
};

/// out[n] = Σ_s planes[s, n], s ascending
struct SumPlanesParams {
  const double* planes = nullptr;
  float* out = nullptr;
  int64_t cols = 0;
  int32_t splits = 0;
};

}  // namespace lowrank::gpu
