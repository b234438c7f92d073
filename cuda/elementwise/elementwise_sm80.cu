/// Small tensors between the products of a layer:
///
///   multiply_add   y = alpha · a ⊙ b + beta · c, b and c [rows | 1, cols | 1]
///   map            y = f(a)
///   swiglu, gelu, gelu_tanh, silu_clamped   y = f(gate) ⊙ up, or the gradients of both
///                  (native/host_device/gated_activation.h)
///   sum_rows       out[m] = Σₙ a ⊙ b         sum_cols   out[n] = Σₘ a ⊙ (b · row_scale[m])
///
/// Operands   [rows, cols], each of its own type (one branch for a warp); out f32
/// Run        kRun neighbouring elements of a row, the lane's share: 8 where all whole operands
///            have 16 bits, else 4, so that a warp-wide access is one run of bytes, 16 a lane for
///            the narrower of two types
/// Grid       multiply_add, map and gates: ceil(runs / (kThreads · kUnroll)). sum_rows: 8 rows a
///            block, one a warp, or one where they are long (row_warps). sum_cols: (ceil(cols / (32
///            kRun)), splits of the rows), each warp every eighth row; splits are added by
///            sum_planes in ascending order
/// Numerics   multiply_add in f32, in the order of the formula, one rounding; map
///            native/host_device/map_function.h; sums in double, where a product of f32 is exact:
///            lanes, then warps and splits in ascending order
/// Needs      nothing: rows or pointers that are not whole words go one by one
///
/// Budget     multiply_add on three bf16 tensors: 6 bytes an element. At 3.0 TB/s and 1.755 GHz,
///            each of 132 multiprocessors sees 2.2 elements a clock; 8 of them a lane cost three
///            loads, a division by the row length (40), conversions (3 each) and a store: 120
///            instructions a run, 33 of 128 issue slots. sum_cols, sum_rows: 2 double operations an
///            element and conversions, 2.2 · 3 of the 64 a clock of sm_80 and sm_90. map: 30 to 50
///            double operations (exp, tanh), 1.5 times what its memory takes; its tensors are r
///            wide. Gates of bf16: 6 bytes an element forward, 10 backward, so 2.2 and 1.3
///            elements a clock. Of the 64 double operations a clock silu and gelu_tanh want 106 and
///            117 forward, 73 and 85 backward; gelu wants 200 and 130. Doubles limit them all, at
///            up to 3.1 times the memory's time: the price of equal bits on every device.
#include "cuda/common/runs.cuh"
#include "native/host_device/gated_activation.h"
#include "native/host_device/map_function.h"

namespace lowrank::gpu {
namespace {

constexpr int kThreads = kElementwiseThreads;
constexpr int kUnroll = kElementwiseUnroll;
constexpr int kWarps = kSumWarps;
constexpr uint32_t kAllLanes = 0xffffffffu;

template <int kRun>
LOWRANK_DEVICE void MultiplyAddBody(const MultiplyAddParams& p) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * (kThreads * kUnroll) + threadIdx.x;
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    const int64_t run = first + u * kThreads;
    const int64_t row = run / p.row_runs;
    if (row >= p.rows) return;
    const Span<kRun> span(run % p.row_runs * kRun, p.cols);
    float value[kRun];
    float other[kRun];
    LoadRun(p.a, row, span, value);
    if (p.b.data != nullptr) {
      LoadRun(p.b, row, span, other);
#pragma unroll
      for (int i = 0; i < kRun; ++i) value[i] *= other[i];
    }
#pragma unroll
    for (int i = 0; i < kRun; ++i) value[i] *= p.alpha;
    if (p.c.data != nullptr) {
      LoadRun(p.c, row, span, other);
#pragma unroll
      for (int i = 0; i < kRun; ++i) value[i] += p.beta * other[i];
    }
    StoreRun(p.y, row * p.cols, span, value);
  }
}

/// Unrolled, so that the run stays in registers.
template <MapFunction kFunction, int kRun>
LOWRANK_DEVICE void MapRun(float (&value)[kRun]) {
#pragma unroll
  for (int i = 0; i < kRun; ++i) value[i] = static_cast<float>(MapValue<kFunction>(value[i]));
}

template <int kRun>
LOWRANK_DEVICE void MapBody(const MapParams& p) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * (kThreads * kUnroll) + threadIdx.x;
  for (int u = 0; u < kUnroll; ++u) {
    const int64_t begin = (first + u * kThreads) * kRun;
    if (begin >= p.elems) return;
    const Span<kRun> span(begin, p.elems);
    float value[kRun];
    LoadRun(p.a, 0, span, value);
    switch (static_cast<MapFunction>(p.function)) {
#define LOWRANK_MAP_CASE(id, name)  \
  case MapFunction::id:             \
    MapRun<MapFunction::id>(value); \
    break;
      LOWRANK_FOR_EACH_MAP_FUNCTION(LOWRANK_MAP_CASE)
#undef LOWRANK_MAP_CASE
    }
    StoreRun(p.y, 0, span, value);
  }
}

template <GateFunction kFunction, int kRun>
LOWRANK_DEVICE void GateBody(const GateParams& p) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * (kThreads * kUnroll) + threadIdx.x;
  for (int u = 0; u < kUnroll; ++u) {
    const int64_t begin = (first + u * kThreads) * kRun;
    if (begin >= p.elems) return;
    const Span<kRun> span(begin, p.elems);
    float gate[kRun];
    float up[kRun];
    LoadRun(p.gate, 0, span, gate);
    LoadRun(p.up, 0, span, up);
    if (p.d_gate.data == nullptr) {
#pragma unroll
      for (int i = 0; i < kRun; ++i) gate[i] = Gated<kFunction>(gate[i], up[i]);
      StoreRun(p.y, 0, span, gate);
      continue;
    }
    float dy[kRun];
    LoadRun(p.dy, 0, span, dy);
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      GateGradients<kFunction>(dy[i], gate[i], up[i], &gate[i], &up[i]);
    }
    StoreRun(p.d_gate, 0, span, gate);
    StoreRun(p.d_up, 0, span, up);
  }
}

/// Adds a · b of a run to sum[i], b times row_scale[row] where that is not null.
template <int kRun>
LOWRANK_DEVICE void AddProducts(const SumProductParams& p, const float* row_scale, int64_t row,
                                int64_t col, double (&sum)[kRun]) {
  const Span<kRun> span(col, p.cols);
  float value[kRun];
  float other[kRun];
  LoadRun(p.a, row, span, value);
  if (p.b.data != nullptr) {
    LoadRun(p.b, row, span, other);
  } else {
#pragma unroll
    for (int i = 0; i < kRun; ++i) other[i] = 1.0f;
  }
  if (row_scale != nullptr) {
    const float scale = row_scale[row];
#pragma unroll
    for (int i = 0; i < kRun; ++i) other[i] *= scale;
  }
#pragma unroll
  for (int i = 0; i < kRun; ++i) {
    // Past the end of the row a is 0, and b may be anything.
    if (i < span.count) sum[i] += static_cast<double>(value[i]) * static_cast<double>(other[i]);
  }
}

struct SumRowsShared {
  double warps[kWarps];
};

template <int kRun>
LOWRANK_DEVICE void SumRowsBody(const SumProductParams& p) {
  SumRowsShared& s = DynamicShared<SumRowsShared>();
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int row_warps = p.row_warps;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (kWarps / row_warps) + warp / row_warps;
  double sum[kRun] = {};
  if (row < p.rows) {
    const int lanes = 32 * row_warps;
    for (int64_t run = warp % row_warps * 32 + lane; run < p.row_runs; run += lanes) {
      AddProducts(p, nullptr, row, run * kRun, sum);
    }
  }
  double total = 0;
#pragma unroll
  for (int i = 0; i < kRun; ++i) total += sum[i];
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    total += __shfl_xor_sync(kAllLanes, total, distance);
  }
  if (lane == 0) s.warps[warp] = total;
  __syncthreads();
  if (row >= p.rows || lane != 0 || warp % row_warps != 0) return;
  double all = 0;
  for (int i = 0; i < row_warps; ++i) all += s.warps[warp + i];
  p.out[row] = static_cast<float>(all);
}

/// Place i of lane l of a warp is at i · stride + l: lanes write to neighbouring banks, and lanes
/// that read columns in order, kRun each, use all banks.
template <int kRun>
struct SumColsShared {
  static constexpr int kStride = SumColsStride(kRun);
  double warps[kWarps][kRun * kStride];
};

template <int kRun>
LOWRANK_DEVICE void SumColsBody(const SumProductParams& p) {
  using Shared = SumColsShared<kRun>;
  Shared& s = DynamicShared<Shared>();
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t first_col = static_cast<int64_t>(blockIdx.x) * (32 * kRun);
  const int64_t col = first_col + lane * kRun;
  const int64_t begin = static_cast<int64_t>(blockIdx.y) * p.rows_per_split;
  const int64_t end = begin + p.rows_per_split < p.rows ? begin + p.rows_per_split : p.rows;
  double sum[kRun] = {};
  if (col < p.cols) {
    for (int64_t row = begin + warp; row < end; row += kWarps) {
      AddProducts(p, p.row_scale, row, col, sum);
    }
  }
#pragma unroll
  for (int i = 0; i < kRun; ++i) s.warps[warp][i * Shared::kStride + lane] = sum[i];
  __syncthreads();
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t out_col = first_col + thread;
  if (thread >= 32 * kRun || out_col >= p.cols) return;
  const int place = thread % kRun * Shared::kStride + thread / kRun;
  double all = 0;
#pragma unroll
  for (int i = 0; i < kWarps; ++i) all += s.warps[i][place];
  if (p.planes == nullptr) {
    p.out[out_col] = static_cast<float>(all);
  } else {
    p.planes[static_cast<int64_t>(blockIdx.y) * p.cols + out_col] = all;
  }
}

LOWRANK_DEVICE void SumPlanesBody(const SumPlanesParams& p) {
  const int64_t col = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (col >= p.cols) return;
  double all = 0;
  for (int split = 0; split < p.splits; ++split) all += p.planes[split * p.cols + col];
  p.out[col] = static_cast<float>(all);
}

}  // namespace

#define LOWRANK_ELEMENTWISE_KERNELS(kRun)                                              \
  LOWRANK_KERNEL(multiply_add_run##kRun##_kernel, MultiplyAddParams, kThreads, 2) {    \
    MultiplyAddBody<kRun>(p);                                                          \
  }                                                                                    \
  LOWRANK_KERNEL(map_run##kRun##_kernel, MapParams, kThreads, 4) { MapBody<kRun>(p); } \
  LOWRANK_KERNEL(swiglu_run##kRun##_kernel, GateParams, kThreads, 2) {                 \
    GateBody<GateFunction::kSilu, kRun>(p);                                            \
  }                                                                                    \
  LOWRANK_KERNEL(gelu_run##kRun##_kernel, GateParams, kThreads, 2) {                   \
    GateBody<GateFunction::kGelu, kRun>(p);                                            \
  }                                                                                    \
  LOWRANK_KERNEL(gelu_tanh_run##kRun##_kernel, GateParams, kThreads, 2) {              \
    GateBody<GateFunction::kGeluTanh, kRun>(p);                                        \
  }                                                                                    \
  LOWRANK_KERNEL(silu_clamped_run##kRun##_kernel, GateParams, kThreads, 2) {           \
    GateBody<GateFunction::kSiluClamped, kRun>(p);                                     \
  }                                                                                    \
  LOWRANK_KERNEL(sum_rows_run##kRun##_kernel, SumProductParams, kThreads, 2) {         \
    SumRowsBody<kRun>(p);                                                              \
  }                                                                                    \
  LOWRANK_KERNEL(sum_cols_run##kRun##_kernel, SumProductParams, kThreads, 2) {         \
    SumColsBody<kRun>(p);                                                              \
  }
LOWRANK_ELEMENTWISE_KERNELS(4)
LOWRANK_ELEMENTWISE_KERNELS(8)
#undef LOWRANK_ELEMENTWISE_KERNELS

LOWRANK_KERNEL(sum_planes_kernel, SumPlanesParams, kThreads, 4) { SumPlanesBody(p); }

}  // namespace lowrank::gpu
