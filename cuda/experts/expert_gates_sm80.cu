/// The experts of a row and their gates (SelectExpertsOp, SelectExpertsBackwardOp):
///
///   select_experts             the k largest logits of a row, the first of equal ones first, NaN
///                              as the largest; gates = softmax over the chosen ones, or over all
///   select_experts_backward    d_logits[e] = p[e] · (d[e] - Σⱼ gates[j] · d_gates[j])
///
/// Operands   logits, d_logits [rows, E] of any type · chosen i32, gates, d_gates f32 [rows, k]
/// Grid       a warp a row; lane l has the experts l, l + 32, ...
/// Shared     the logits and the chosen of a row; backward d of a row in double
/// Numerics   in double (native/host_device/expert_gates.h), a lane's experts ascending and the
///            lanes as a tree, rounded once. Nothing depends on the other rows
/// Needs      E up to 1,024
///
/// Budget     65,536 rows of 128 experts, k = 8: 33 MB of f32 logits, 11 us at 3.0 TB/s. A row
///            takes 8 turns of 4 comparisons and 15 shuffles a lane, 1,000 issue slots of a warp,
///            and 4 exponentials in double, 4 · 45 operations a lane: 90 clk of a multiprocessor.
///            In all 65,536 / 132 · 340 clk = 96 us: a tenth of the products of such a layer in
///            bf16.
#include "cuda/common/small_operand.cuh"
#include "native/host_device/expert_gates.h"
#include "native/host_device/params/experts.h"

namespace lowrank::gpu {
namespace {

constexpr unsigned kAllLanes = 0xffffffffu;

LOWRANK_DEVICE double SumOfLanes(double sum) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    sum += __shfl_xor_sync(kAllLanes, sum, distance);
  }
  return sum;
}

/// A logit and its expert; -1: none.
struct Best {
  float logit;
  int expert;

  __device__ __forceinline__ void Take(float other, int other_expert) {
    if (other_expert < 0) return;
    const bool first = expert < 0 || ComesBefore(other, logit) ||
                       (!ComesBefore(logit, other) && other_expert < expert);
    if (!first) return;
    logit = other;
    expert = other_expert;
  }
};

LOWRANK_DEVICE void SelectBody(const SelectExpertsParams& p) {
  SelectExpertsShared& s = DynamicShared<SelectExpertsShared>();
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kSelectRows + warp;
  if (row >= p.rows) return;
  float* s_logits = s.logits[warp];
  int32_t* s_chosen = s.chosen[warp];
  for (int e = lane; e < p.experts; e += 32) {
    s_logits[e] = LoadSmall(p.element, p.logits, row * p.experts + e);
  }
  uint32_t taken = 0;  // of this lane's experts
  float largest = 0;
  for (int j = 0; j < p.k; ++j) {
    Best best{0.0f, -1};
    for (int e = lane; e < p.experts; e += 32) {
      if ((taken >> (e / 32) & 1u) == 0) best.Take(s_logits[e], e);
    }
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
      const float logit = __shfl_xor_sync(kAllLanes, best.logit, distance);
      const int expert = __shfl_xor_sync(kAllLanes, best.expert, distance);
      best.Take(logit, expert);
    }
    if (j == 0) largest = best.logit;
    if (best.expert % 32 == lane) {
      taken |= 1u << (best.expert / 32);
      s_chosen[j] = best.expert;
    }
  }
  double sum = 0;
  for (int e = lane; e < p.experts; e += 32) {
    const bool counts = p.chosen_only == 0 || (taken >> (e / 32) & 1u) != 0;
    if (counts) sum += GateTerm(s_logits[e], largest);
  }
  sum = SumOfLanes(sum);
  __syncwarp();
  for (int j = lane; j < p.k; j += 32) {
    const int expert = s_chosen[j];
    p.chosen[row * p.k + j] = expert;
    p.gates[row * p.k + j] = static_cast<float>(GateTerm(s_logits[expert], largest) / sum);
  }
}

LOWRANK_DEVICE void SelectBackwardBody(const SelectExpertsParams& p) {
  SelectExpertsBackwardShared& s = DynamicShared<SelectExpertsBackwardShared>();
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kSelectRows + warp;
  if (row >= p.rows) return;
  double* s_d_gates = s.d_gates[warp];  // a lane touches those of its own experts
  const int32_t* g_chosen = p.chosen + row * p.k;
  const auto logit = [&](int e) { return LoadSmall(p.element, p.logits, row * p.experts + e); };
  for (int e = lane; e < p.experts; e += 32) s_d_gates[e] = 0;
  uint32_t taken = 0;
  double along = 0;
  for (int j = 0; j < p.k; ++j) {
    const int expert = g_chosen[j];
    if (expert < 0) continue;
    const double given = p.d_gates[row * p.k + j];
    along += static_cast<double>(p.gates[row * p.k + j]) * given;
    if (expert % 32 != lane) continue;
    taken |= 1u << (expert / 32);
    s_d_gates[expert] += given;
  }
  const float largest = g_chosen[0] < 0 ? 0.0f : logit(g_chosen[0]);
  const auto counts = [&](int e) { return p.chosen_only == 0 || (taken >> (e / 32) & 1u) != 0; };
  double sum = 0;
  for (int e = lane; e < p.experts; e += 32) {
    if (counts(e)) sum += GateTerm(logit(e), largest);
  }
  sum = SumOfLanes(sum);
  for (int e = lane; e < p.experts; e += 32) {
    const double share = counts(e) ? GateTerm(logit(e), largest) / sum : 0.0;
    const double value = share == 0 ? 0.0 : share * (s_d_gates[e] - along);
    StoreSmall(p.element, p.d_logits, row * p.experts + e, static_cast<float>(value));
  }
}

}  // namespace

LOWRANK_KERNEL(select_experts_kernel, SelectExpertsParams, kSelectThreads, 4) { SelectBody(p); }
LOWRANK_KERNEL(select_experts_backward_kernel, SelectExpertsParams, kSelectThreads, 4) {
  SelectBackwardBody(p);
}

}  // namespace lowrank::gpu
