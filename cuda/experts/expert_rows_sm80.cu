/// The weighted sum of what the experts of a row give (CombineRowsOp, CombineRowsBackwardOp), with
/// s the slot of the pair (m, j):
///
///   combine_rows             out[m] = Σⱼ gates[m, j] · y[s]
///   combine_rows_backward    dy[s] = gates[m, j] · d_out[m], d_gates[m, j] = d_out[m] · y[s]
///
/// Slots without an expert give nothing and get zeros.
///
/// Operands   y, dy [slots, N], out, d_out [rows, N], each of a type of its own · gates, d_gates
///            f32
/// Grid       kRowThreads / row_lanes rows a block, or backward pairs, eight neighbouring elements
///            a lane (cuda/common/row_lanes.cuh)
/// Shared     the sums of warps, backward
/// Numerics   j ascending in f32 without fma, one rounding; d_gates in double: a lane's runs
///            ascending, lanes as a tree, warps ascending. Nothing depends on the other rows
/// Needs      nothing: rows that are no whole words go element by element
///
/// Budget     8,192 rows of 8 slots of 2,048 in bf16: y 268 MB and out 34 MB, 101 us at 3.0 TB/s. A
///            lane's eight elements are eight loads of 16 bytes and some 220 instructions for 64
///            products: 1.1 elements of out a clock and multiprocessor, 30 of 128 issue slots.
///            Backward y and dy, 537 MB, 179 us; d_out comes from L2.
#include "cuda/common/row_lanes.cuh"
#include "cuda/common/runs.cuh"
#include "native/host_device/params/experts.h"

namespace lowrank::gpu {
namespace {

LOWRANK_DEVICE float GateOf(const CombineRowsParams& p, int64_t pair) {
  return p.gates == nullptr ? 1.0f : p.gates[pair];
}

LOWRANK_DEVICE void CombineBody(const CombineRowsParams& p) {
  const RowLane at(p.row_lanes);
  if (at.row >= p.rows) return;
  const int32_t kept = *p.kept;
  for (int64_t run = at.lane; run < p.row_runs; run += p.row_lanes) {
    const Span<8> span(run * 8, p.cols);
    float sum[8] = {};
    for (int j = 0; j < p.k; ++j) {
      const int64_t pair = at.row * p.k + j;
      const int32_t slot = p.inverse[pair];
      if (slot >= kept) continue;
      const float gate = GateOf(p, pair);
      float value[8];
      LoadRun(p.y, slot, span, value);
#pragma unroll
      for (int i = 0; i < 8; ++i) sum[i] += gate * value[i];
    }
    StoreRun(p.out, at.row * p.cols, span, sum);
  }
}

LOWRANK_DEVICE void CombineBackwardBody(const CombineRowsParams& p) {
  RowSumShared& s = DynamicShared<RowSumShared>();
  const RowLane at(p.row_lanes);
  const bool inside = at.row < p.rows;
  double sum = 0;
  if (inside) {
    const int32_t slot = p.inverse[at.row];
    const bool kept = slot < *p.kept;
    const float gate = GateOf(p, at.row);
    for (int64_t run = at.lane; run < p.row_runs; run += p.row_lanes) {
      const Span<8> span(run * 8, p.cols);
      float value[8] = {};
      if (kept) {
        float d_out[8];
        LoadRun<8, false>(p.out, at.row / p.k, span, d_out);
        if (p.d_gates != nullptr) {
          LoadRun(p.y, slot, span, value);
#pragma unroll
          for (int i = 0; i < 8; ++i) {
            if (i < span.count)
              sum += static_cast<double>(d_out[i]) * static_cast<double>(value[i]);
          }
        }
#pragma unroll
        for (int i = 0; i < 8; ++i) value[i] = gate * d_out[i];
      }
      if (p.dy.data != nullptr) StoreRun(p.dy, slot * p.cols, span, value);
    }
  }
  if (p.d_gates == nullptr) return;
  sum = SumOfRow(sum, p.row_lanes, s);
  if (inside && at.lane == 0) p.d_gates[at.row] = static_cast<float>(sum);
}

}  // namespace

LOWRANK_KERNEL(combine_rows_kernel, CombineRowsParams, kRowThreads, 4) { CombineBody(p); }
LOWRANK_KERNEL(combine_rows_backward_kernel, CombineRowsParams, kRowThreads, 4) {
  CombineBackwardBody(p);
}

}  // namespace lowrank::gpu
