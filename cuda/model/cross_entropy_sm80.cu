/// The loss behind a head, with the gradient of its input (LinearCrossEntropyOp). For a chunk of
/// tokens and a block of the vocabulary the kernels of products make the logits z = x · blockᵀ in
/// f32 and, of what the first kernel here leaves in p, p · block; in between:
///
///   cross_entropy_block   z, capped; largest, sum = Σ exp(z - largest) and the target's logit run
///                         along the blocks; p = exp(z - largest) · z', rounded to the type of x.
///                         With the last block loss = largest + log sum - z[target]
///   cross_entropy_add     sums = scale_down · sums + p · block, where scale_down =
///                         exp(largest before - largest)
///   cross_entropy_grad    dx = weight · (sums / sum - z'[target] · head[target])
///
/// Operands   z in planes, sums f32; p and dx in the type of x; head dense or packed
/// Grid       block: a token a block of threads; add, grad: kRowThreads / row_lanes tokens a block
/// Numerics   exp by a polynomial of degree 6 for 2^x, off by 2 ulp; below 2^-60 it is 0, which a
///            sum of 1 and more does not show. Σ exp in double: a lane's runs in ascending order,
///            lanes as a tree, warps in ascending order. cap · tanh(z / cap), its derivative and
///            the logarithm in double (native/host_device/map_function.h). Planes in ascending
///            order
/// Needs      nothing: rows that are not whole words go one by one
///
/// Budget     A logit is 4 bytes of z that the product writes, read once from L2 or memory and once
///            from L1 or L2, and 2 bytes of p written and read: 12 bytes, 4 ps at 3.0 TB/s. Its two
///            products with K = 4096 are 16 KFLOP: 33 ps by mma.sync at 1,270 multiply-adds a clock
///            and multiprocessor, 1.48 GHz. About 35 instructions a logit (max 3, exp 14, double
///            sum 3, rounding 5, addressing), at 1.4 logits a clock and multiprocessor 49 of 128
///            lanes. sums and planes of p · block are 16 bytes for each token, feature and
///            block: 2.7 ps a logit with blocks of 8,192. In all 40 ps, 42 ms for 8,192 tokens of
///            128,256.
#include "cuda/common/row_chunks.cuh"
#include "cuda/common/row_lanes.cuh"
#include "cuda/common/runs.cuh"
#include "cuda/common/weight_octets.cuh"
#include "native/host_device/map_function.h"
#include "native/host_device/params/cross_entropy.h"

namespace lowrank::gpu {
namespace {

constexpr float kLog2E = 1.44269504f;

/// 2^x, |x| up to 126: 2^n · (1 + f · Q(f)), x = n + f, |f| <= 1/2, Q of least error. 0 below
/// 2^-60.
LOWRANK_DEVICE float Exp2OrZero(float x) {
  const float magic = 12582912.0f;  // 1.5 · 2^23: the low bits of the sum are the integer
  const float shifted = x + magic;
  const float f = x - (shifted - magic);
  float q = 1.5353362e-4f;
  q = fmaf(q, f, 1.3398874e-3f);
  q = fmaf(q, f, 9.618437e-3f);
  q = fmaf(q, f, 5.5503324e-2f);
  q = fmaf(q, f, 0.24022648f);
  q = fmaf(q, f, 0.69314718f);
  const float power = __uint_as_float((__float_as_uint(shifted) + 127u) << 23);
  const float value = fmaf(power, f * q, power);
  return x < -60.0f ? 0.0f : value;
}

/// Bits that order as the values do, NaN last.
LOWRANK_DEVICE uint32_t OrderedBits(float value) {
  const uint32_t bits = __float_as_uint(value);
  return (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
}
LOWRANK_DEVICE float FromOrderedBits(uint32_t bits) {
  return __uint_as_float((bits >> 31) != 0 ? bits & 0x7fffffffu : ~bits);
}

LOWRANK_DEVICE float CapLogit(float z, float cap) {
  const double scale = static_cast<double>(cap);
  return static_cast<float>(TanhOf(static_cast<double>(z) / scale) * scale);
}

/// The derivative of the cap where it gave z: 1 - (z / cap)²; 1 without a cap.
LOWRANK_DEVICE float CapDerivative(float z, float cap) {
  if (cap == 0.0f) return 1.0f;
  const double t = static_cast<double>(z) / static_cast<double>(cap);
  return static_cast<float>(1.0 - t * t);
}

/// The planes of a run added in ascending order; zeros past the end of a row.
LOWRANK_DEVICE void LoadPlanes(const SmallOperand& plane, int64_t plane_elems, int planes,
                               int64_t row, const Span<4>& span, float (&value)[4]) {
  LoadRun<4, false>(plane, row, span, value);
  SmallOperand next = plane;
  for (int i = 1; i < planes; ++i) {
    next.data = static_cast<const float*>(next.data) + plane_elems;
    float other[4];
    LoadRun<4, false>(next, row, span, other);
#pragma unroll
    for (int q = 0; q < 4; ++q) value[q] += other[q];
  }
}

LOWRANK_DEVICE SmallOperand PlaneOf(const float* planes, int64_t cols, int vector) {
  SmallOperand plane;
  plane.data = planes;
  plane.row_elems = cols;
  plane.vector = vector;
  return plane;
}

LOWRANK_DEVICE void BlockBody(const CrossEntropyBlockParams& p) {
  CrossEntropyBlockShared& s = DynamicShared<CrossEntropyBlockShared>();
  const int64_t row = blockIdx.x;
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t target = p.targets[row] - p.first_id;
  const CrossEntropyState before =
      p.first != 0 ? CrossEntropyState{0.0, 0.0f, 0.0f, 0.0f, 0.0f} : p.states[row];
  const SmallOperand z = PlaneOf(p.planes, p.cols, p.vector);
  const int64_t row_begin = row * p.cols;

  // The logits, which stay in the first plane for the second pass of the same thread.
  uint32_t largest = p.first != 0 ? 0u : OrderedBits(before.largest);
  for (int64_t run = thread; run < p.row_runs; run += kRowThreads) {
    const Span<4> span(run * 4, p.cols);
    float value[4];
    LoadPlanes(z, p.rows * p.cols, p.plane_count, row, span, value);
    if (p.softcap > 0.0f) {
#pragma unroll
      for (int i = 0; i < 4; ++i) value[i] = CapLogit(value[i], p.softcap);
    }
    if (p.plane_count > 1 || p.softcap > 0.0f) StoreRun(z, row_begin, span, value);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i < span.count) largest = max(largest, OrderedBits(value[i]));
      if (span.col + i == target) s.target = value[i];
    }
  }
  const float most = FromOrderedBits(LargestOfBlock(largest, s.largest, kRowThreads));

  double sum = 0;
  for (int64_t run = thread; run < p.row_runs; run += kRowThreads) {
    const Span<4> span(run * 4, p.cols);
    float value[4];
    LoadRun<4, false>(z, row, span, value);
    float part[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      part[i] = Exp2OrZero((value[i] - most) * kLog2E);
      if (i < span.count) sum += static_cast<double>(part[i]);
      part[i] *= CapDerivative(value[i], p.softcap);
    }
    if (p.p.data != nullptr) StoreRun(p.p, row_begin, span, part);
  }
  sum = SumOfRow(sum, kRowThreads, s.sums);
  if (thread != 0) return;

  CrossEntropyState state;
  state.scale_down = p.first != 0 ? 0.0f : Exp2OrZero((before.largest - most) * kLog2E);
  state.sum = before.sum * static_cast<double>(state.scale_down) + sum;
  state.largest = most;
  state.target = target >= 0 && target < p.cols ? s.target : before.target;
  state.unused = 0;
  p.states[row] = state;
  if (p.losses == nullptr) return;
  const double log_sum = static_cast<double>(most) + LogOf(state.sum);
  p.losses[row] =
      p.targets[row] < 0 ? 0.0f : static_cast<float>(log_sum - static_cast<double>(state.target));
}

LOWRANK_DEVICE void AddBody(const CrossEntropyAddParams& p) {
  const RowLane at(p.row_lanes);
  if (at.row >= p.rows) return;
  const float scale_down = p.states[at.row].scale_down;
  const SmallOperand plane = PlaneOf(p.planes, p.cols, p.vector);
  const SmallOperand sums = PlaneOf(p.sums, p.cols, p.vector);
  for (int64_t run = at.lane; run < p.row_runs; run += p.row_lanes) {
    const Span<4> span(run * 4, p.cols);
    float value[4];
    LoadPlanes(plane, p.rows * p.cols, p.plane_count, at.row, span, value);
    if (p.first == 0) {
      float sum[4];
      LoadRun<4, false>(sums, at.row, span, sum);
#pragma unroll
      for (int i = 0; i < 4; ++i) value[i] = fmaf(sum[i], scale_down, value[i]);
    }
    StoreRun(sums, at.row * p.cols, span, value);
  }
}

LOWRANK_DEVICE void GradBody(const CrossEntropyGradParams& p) {
  CrossEntropyGradShared& s = DynamicShared<CrossEntropyGradShared>();
  FillCodebook(p.head, s.codebook);
  const RowLane at(p.row_lanes);
  if (at.row >= p.rows) return;
  const int64_t target = p.targets[at.row];
  const CrossEntropyState state = p.states[at.row];
  const float weight = p.weights == nullptr ? p.scale : p.scale * p.weights[at.row];
  const auto inverse = static_cast<float>(1.0 / state.sum);
  const float derivative = CapDerivative(state.target, p.softcap);
  const SmallOperand sums = PlaneOf(p.sums, p.cols, p.vector);
  for (int64_t run = at.lane; run < p.row_runs; run += p.row_lanes) {
    const Span<8> span(run * 8, p.cols);
    float value[8] = {};
    if (target >= 0) {
      float head[8];
      LoadRun<8, false>(sums, at.row, span, value);
      LoadWeightEight(head, p.head, s.codebook, target * p.cols + span.col, span.count,
                      p.vector != 0);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float row = p.head.bits == 0 ? head[i] : RoundSmall(p.dx.element, head[i]);
        value[i] = weight * (value[i] * inverse - derivative * row);
      }
    }
    StoreRun(p.dx, at.row * p.cols, span, value);
  }
}

}  // namespace

LOWRANK_KERNEL(cross_entropy_block_kernel, CrossEntropyBlockParams, kRowThreads, 4) {
  BlockBody(p);
}
LOWRANK_KERNEL(cross_entropy_add_kernel, CrossEntropyAddParams, kRowThreads, 4) { AddBody(p); }
LOWRANK_KERNEL(cross_entropy_grad_kernel, CrossEntropyGradParams, kRowThreads, 3) { GradBody(p); }

}  // namespace lowrank::gpu
