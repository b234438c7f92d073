/// Root-mean-square norms (RmsNormOp and RmsNormBackwardOp have the formulas):
///
///   rms_norm            sum = x + residual, inv_rms, y = sum · inv_rms · gain
///   rms_norm_backward   dx = inv_rms · u - s · factor + d_sum, u = gain ⊙ dy
///
/// Operands   [rows, cols] and g [cols], each of its own type (one branch for a warp); inv_rms f32
/// Run        kRun neighbouring elements of a row (cuda/common/runs.cuh): 8 where all rows have 16
///            bits, else 4
/// Grid       kThreads / row_lanes rows a block. The lanes of a row are a part of a warp, a warp,
///            or 2 to 8 warps: enough that each keeps its share in registers
/// Registers  32 elements a lane of a row forward, 16 of s and of u backward; of longer rows the
///            rest is read twice, the second time from L2
/// Numerics   sums of squares and of s · u in double, where a product of f32 is exact: a lane's
/// runs
///            in ascending order, lanes as a tree, warps in ascending order. row_lanes depends on
///            cols and the types alone, so a row has the same bits in any batch. The rest in f32
///            in the order of the formula, one rounding at the store
/// Needs      nothing: rows or pointers that are not whole words go one by one
///
/// dg is a sum over rows of dy ⊙ s · inv_rms: sum_cols of elementwise_sm80.cu, in planes that
/// sum_planes adds in ascending order.
///
/// Budget     8192 x 4096 in bf16 with a residual: 268 MB, 89 us at 3.0 TB/s. At 1.755 GHz each of
///            132 multiprocessors sees 1.6 elements a clock; 8 of a lane are about 190 instructions
///            (two loads, conversions of 3 each, two double operations, 4 for a rounding), 38 of
///            128 issue slots a clock; double operations 3.3 of 64. g comes from L1, which keeps it
///            for the rows of a multiprocessor: from L2 it would add a third to 20 of the 30 bytes
///            a clock. Backward, four tensors: the same bytes, 230 instructions. 3 blocks of 256
///            threads (80 registers) with 16 bytes each in flight are 12 KB a multiprocessor;
///            memory needs 9.
#include "cuda/common/row_lanes.cuh"
#include "cuda/common/runs.cuh"
#include "native/host_device/map_function.h"
#include "native/host_device/params/rms_norm.h"

namespace lowrank::gpu {
namespace {

constexpr int kThreads = kRowThreads;

/// Adds a · b; both are zeros past the end of a row.
template <int kRun>
LOWRANK_DEVICE void AddProducts(const float (&a)[kRun], const float (&b)[kRun], double& sum) {
#pragma unroll
  for (int i = 0; i < kRun; ++i) sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
}

template <int kRun>
LOWRANK_DEVICE void LoadGain(const SmallOperand& g, int plus_one, const Span<kRun>& span,
                             float (&gain)[kRun]) {
  LoadRun<kRun, false>(g, 0, span, gain);
  if (plus_one == 0) return;
#pragma unroll
  for (int i = 0; i < kRun; ++i) gain[i] += 1.0f;
}

/// x, or x + residual rounded to the type of x.
template <int kRun>
LOWRANK_DEVICE void LoadSum(const RmsNormParams& p, int64_t row, const Span<kRun>& span,
                            float (&value)[kRun]) {
  LoadRun(p.x, row, span, value);
  if (p.residual.data == nullptr) return;
  float other[kRun];
  LoadRun(p.residual, row, span, other);
#pragma unroll
  for (int i = 0; i < kRun; ++i) value[i] = RoundSmall(p.x.element, value[i] + other[i]);
}

template <int kRun>
LOWRANK_DEVICE void StoreNormed(const RmsNormParams& p, int64_t row, const Span<kRun>& span,
                                float inv_rms, float (&value)[kRun]) {
  float gain[kRun];
  LoadGain(p.g, p.plus_one, span, gain);
#pragma unroll
  for (int i = 0; i < kRun; ++i) value[i] = value[i] * inv_rms * gain[i];
  StoreRun(p.y, row * p.cols, span, value);
}

template <int kRun>
LOWRANK_DEVICE void RmsNormBody(const RmsNormParams& p) {
  constexpr int kRuns = static_cast<int>(kRmsNormHeld) / kRun;
  const RowLane at(p.row_lanes);
  const int64_t row = at.row;
  const bool inside = row < p.rows;
  float held[kRuns][kRun];
  double squares = 0;
#pragma unroll
  for (int u = 0; u < kRuns; ++u) {
    const int64_t run = at.lane + u * p.row_lanes;
    if (!inside || run >= p.row_runs) continue;
    const Span<kRun> span(run * kRun, p.cols);
    LoadSum(p, row, span, held[u]);
    if (p.sum.data != nullptr) StoreRun(p.sum, row * p.cols, span, held[u]);
    AddProducts(held[u], held[u], squares);
  }
  const int64_t rest = at.lane + kRuns * p.row_lanes;  // none in a block of several rows
  for (int64_t run = rest; run < p.row_runs; run += p.row_lanes) {
    const Span<kRun> span(run * kRun, p.cols);
    float value[kRun];
    LoadSum(p, row, span, value);
    if (p.sum.data != nullptr) StoreRun(p.sum, row * p.cols, span, value);
    AddProducts(value, value, squares);
  }
  squares = SumOfRow(squares, p.row_lanes, DynamicShared<RowSumShared>());
  if (!inside) return;
  const double mean = p.cols == 0 ? 0.0 : squares / static_cast<double>(p.cols);
  const auto inv_rms = static_cast<float>(1.0 / SqrtOf(mean + static_cast<double>(p.eps)));
  if (p.inv_rms != nullptr && at.lane == 0) p.inv_rms[row] = inv_rms;
#pragma unroll
  for (int u = 0; u < kRuns; ++u) {
    const int64_t run = at.lane + u * p.row_lanes;
    if (run >= p.row_runs) continue;
    StoreNormed(p, row, Span<kRun>(run * kRun, p.cols), inv_rms, held[u]);
  }
  for (int64_t run = rest; run < p.row_runs; run += p.row_lanes) {
    const Span<kRun> span(run * kRun, p.cols);
    float value[kRun];
    LoadSum(p, row, span, value);
    StoreNormed(p, row, span, inv_rms, value);
  }
}

/// s and u = gain ⊙ dy.
template <int kRun>
LOWRANK_DEVICE void LoadFactors(const RmsNormBackwardParams& p, int64_t row, const Span<kRun>& span,
                                float (&s)[kRun], float (&u)[kRun]) {
  float gain[kRun];
  LoadRun(p.s, row, span, s);
  LoadRun(p.dy, row, span, u);
  LoadGain(p.g, p.plus_one, span, gain);
#pragma unroll
  for (int i = 0; i < kRun; ++i) u[i] *= gain[i];
}

template <int kRun>
LOWRANK_DEVICE void StoreInputGrad(const RmsNormBackwardParams& p, int64_t row,
                                   const Span<kRun>& span, float inv_rms, float factor,
                                   const float (&s)[kRun], float (&u)[kRun]) {
#pragma unroll
  for (int i = 0; i < kRun; ++i) u[i] = u[i] * inv_rms - s[i] * factor;
  if (p.d_sum.data != nullptr) {
    float other[kRun];
    LoadRun(p.d_sum, row, span, other);
#pragma unroll
    for (int i = 0; i < kRun; ++i) u[i] += other[i];
  }
  StoreRun(p.dx, row * p.cols, span, u);
}

template <int kRun>
LOWRANK_DEVICE void RmsNormBackwardBody(const RmsNormBackwardParams& p) {
  constexpr int kRuns = static_cast<int>(kRmsNormBackwardHeld) / kRun;
  const RowLane at(p.row_lanes);
  const int64_t row = at.row;
  const bool inside = row < p.rows;
  float held_s[kRuns][kRun];
  float held_u[kRuns][kRun];
  double products = 0;
#pragma unroll
  for (int q = 0; q < kRuns; ++q) {
    const int64_t run = at.lane + q * p.row_lanes;
    if (!inside || run >= p.row_runs) continue;
    LoadFactors(p, row, Span<kRun>(run * kRun, p.cols), held_s[q], held_u[q]);
    AddProducts(held_s[q], held_u[q], products);
  }
  const int64_t rest = at.lane + kRuns * p.row_lanes;  // none in a block of several rows
  for (int64_t run = rest; run < p.row_runs; run += p.row_lanes) {
    float s[kRun];
    float u[kRun];
    LoadFactors(p, row, Span<kRun>(run * kRun, p.cols), s, u);
    AddProducts(s, u, products);
  }
  products = SumOfRow(products, p.row_lanes, DynamicShared<RowSumShared>());
  if (!inside) return;
  const float inv_rms = p.inv_rms[row];
  const double inverse = static_cast<double>(inv_rms);
  const auto factor =
      static_cast<float>(inverse * inverse * inverse * products / static_cast<double>(p.cols));
#pragma unroll
  for (int q = 0; q < kRuns; ++q) {
    const int64_t run = at.lane + q * p.row_lanes;
    if (run >= p.row_runs) continue;
    StoreInputGrad(p, row, Span<kRun>(run * kRun, p.cols), inv_rms, factor, held_s[q], held_u[q]);
  }
  for (int64_t run = rest; run < p.row_runs; run += p.row_lanes) {
    const Span<kRun> span(run * kRun, p.cols);
    float s[kRun];
    float u[kRun];
    LoadFactors(p, row, span, s, u);
    StoreInputGrad(p, row, span, inv_rms, factor, s, u);
  }
}

}  // namespace

#define LOWRANK_RMS_NORM_KERNELS(kRun)                                                       \
  LOWRANK_KERNEL(rms_norm_run##kRun##_kernel, RmsNormParams, kThreads, 3) {                  \
    RmsNormBody<kRun>(p);                                                                    \
  }                                                                                          \
  LOWRANK_KERNEL(rms_norm_backward_run##kRun##_kernel, RmsNormBackwardParams, kThreads, 3) { \
    RmsNormBackwardBody<kRun>(p);                                                            \
  }
LOWRANK_RMS_NORM_KERNELS(4)
LOWRANK_RMS_NORM_KERNELS(8)
#undef LOWRANK_RMS_NORM_KERNELS

}  // namespace lowrank::gpu
