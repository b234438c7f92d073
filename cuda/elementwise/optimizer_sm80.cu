/// Steps of optimisers over lists of tensors, and the norm of gradients:
///
///   optimizer_<kind>   p, states = step(p, g, states)   (native/host_device/optimizer_step.h)
///   optimizer_advance  steps_done + 1, unless the step changed nothing
///   norm_squares       planes[block] = Σ g²
///   norm_total         norm = (Σ planes)^½
///
/// Operands   p, g of f32, bf16 or f16, each tensor of its own type; states, norm, lr, steps_done
///            f32. The list of tensors is in the parameters
/// Run        kOptimizerRun neighbouring elements, the lane's share: 16 bytes of f32, 8 of 16 bits
/// Grid       one block for each kOptimizerBlock elements of a tensor; it finds its tensor by
///            bisection. norm_total, optimizer_advance: one block
/// Numerics   the step in f32 with the bits of every other device; its constants are computed in
///            double by one thread of a block. Squares and sums in double: runs of a thread, then
///            lanes, warps and blocks in an order that the sizes alone set
/// Needs      nothing: runs that are not whole words go element by element
///
/// Budget     AdamW over f32: 28 bytes an element, 4,096 elements a block, 115 KB. At 3.0 TB/s and
///            1.755 GHz each of 132 multiprocessors moves 13 bytes a clock: 8,850 clocks a block.
///            A run of 4 costs 4 loads, 3 stores and about 35 instructions an element (a division
///            and a root of f32 take 8 each and a branch): 160 a run, 1,024 runs, 5,100 of 8,850 ·
///            4 issue slots. The constants: 25 double products in a chain and 4 divisions, about
///            1,500 clocks of one warp, hidden behind the other 7 blocks of the multiprocessor.
///            norm_squares: 4 bytes and 2 double operations an element: 3.3 · 2 of the 64 a clock
#include "cuda/common/small_operand.cuh"
#include "native/host_device/params/optimizer.h"

namespace lowrank::gpu {
namespace {

constexpr int kThreads = static_cast<int>(kOptimizerThreads);
constexpr int kRun = kOptimizerRun;
constexpr int kWarps = kThreads / 32;
constexpr uint32_t kAllLanes = 0xffffffffu;

/// The part that owns this block.
template <typename Part>
LOWRANK_DEVICE int PartOfBlock(const Part* parts, int count) {
  const int block = static_cast<int>(blockIdx.x);
  int low = 0;
  int high = count;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (parts[middle].first_block <= block) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

/// `count` <= kRun elements from `index` on; zeros beyond. `whole`: kRun of them at whole words.
LOWRANK_DEVICE void LoadElements(int element, const void* g_data, int64_t index, bool whole,
                                 int count, float (&value)[kRun]) {
  if (!whole) {
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      value[i] = i < count ? LoadSmall(element, g_data, index + i) : 0.0f;
    }
    return;
  }
  if (element == kSmallF32) {
    const uint4 raw = *reinterpret_cast<const uint4*>(static_cast<const float*>(g_data) + index);
    Unpack(ElementF32(), raw, value);
    return;
  }
  const uint2 half = *reinterpret_cast<const uint2*>(static_cast<const uint16_t*>(g_data) + index);
  float all[8];
  if (element == kSmallBF16) {
    Unpack(ElementBF16(), make_uint4(half.x, half.y, 0, 0), all);
  } else {
    Unpack(ElementF16(), make_uint4(half.x, half.y, 0, 0), all);
  }
#pragma unroll
  for (int i = 0; i < kRun; ++i) value[i] = all[i];
}

LOWRANK_DEVICE void StoreElements(int element, void* g_data, int64_t index, bool whole, int count,
                                  const float (&value)[kRun]) {
  if (!whole) {
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      if (i < count) StoreSmall(element, g_data, index + i, value[i]);
    }
    return;
  }
  if (element == kSmallF32) {
    *reinterpret_cast<uint4*>(static_cast<float*>(g_data) + index) = Pack(ElementF32(), value);
    return;
  }
  float all[8] = {};
#pragma unroll
  for (int i = 0; i < kRun; ++i) all[i] = value[i];
  const uint4 packed = element == kSmallBF16 ? Pack(ElementBF16(), all) : Pack(ElementF16(), all);
  *reinterpret_cast<uint2*>(static_cast<uint16_t*>(g_data) + index) =
      make_uint2(packed.x, packed.y);
}

LOWRANK_DEVICE OptimizerMoment ReadMoment(const OptimizerNow& at) {
  OptimizerMoment now;
  now.lr = at.lr_at != nullptr ? *at.lr_at : at.lr;
  now.norm = at.norm != nullptr ? *at.norm : 0.0f;
  now.step = at.steps_done != nullptr ? NextStep(*at.steps_done) : at.step;
  return now;
}

template <typename Rule>
LOWRANK_DEVICE void StepBody(const OptimizerStepParams& p) {
  OptimizerShared<Rule>& s = DynamicShared<OptimizerShared<Rule>>();
  const OptimizerPart& part = p.parts[PartOfBlock(p.parts, p.count)];
  if (threadIdx.x == 0) {
    const OptimizerMoment now = ReadMoment(p.now);
    s.applies = StepApplies(now) ? 1 : 0;
    s.rule = Rule::Of(p.settings, now, part.lr_scale, part.weight_decay);
  }
  __syncthreads();
  if (s.applies == 0) return;
  const Rule rule = s.rule;
  const int64_t begin =
      static_cast<int64_t>(static_cast<int>(blockIdx.x) - part.first_block) * kOptimizerBlock;
#pragma unroll
  for (int u = 0; u < kOptimizerUnroll; ++u) {
    const int64_t index =
        begin + (static_cast<int64_t>(u) * kThreads + static_cast<int>(threadIdx.x)) * kRun;
    if (index >= part.elems) return;
    const int64_t left = part.elems - index;
    const int count = left < kRun ? static_cast<int>(left) : kRun;
    const bool whole = part.vector != 0 && count == kRun;
    float value[kRun];
    float gradient[kRun];
    float state[Rule::kStates][kRun];
    LoadElements(part.p_element, part.p, index, whole, count, value);
    LoadElements(part.g_element, part.g, index, whole, count, gradient);
#pragma unroll
    for (int k = 0; k < Rule::kStates; ++k) {
      LoadElements(kSmallF32, part.states[k], index, whole, count, state[k]);
    }
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      float own[Rule::kStates];
#pragma unroll
      for (int k = 0; k < Rule::kStates; ++k) own[k] = state[k][i];
      Rule::Update(rule, gradient[i], &value[i], own);
#pragma unroll
      for (int k = 0; k < Rule::kStates; ++k) state[k][i] = own[k];
    }
#pragma unroll
    for (int k = 0; k < Rule::kStates; ++k) {
      StoreElements(kSmallF32, part.states[k], index, whole, count, state[k]);
    }
    StoreElements(part.p_element, part.p, index, whole, count, value);
  }
}

/// The sum over the block, on thread 0.
LOWRANK_DEVICE double SumOfBlock(double value) {
  NormShared& s = DynamicShared<NormShared>();
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, distance);
  }
  if (threadIdx.x % 32 == 0) s.warps[threadIdx.x / 32] = value;
  __syncthreads();
  double sum = 0;
  if (threadIdx.x == 0) {
#pragma unroll
    for (int i = 0; i < kWarps; ++i) sum += s.warps[i];
  }
  return sum;
}

LOWRANK_DEVICE void NormSquaresBody(const NormSquaresParams& p) {
  const NormPart& part = p.parts[PartOfBlock(p.parts, p.count)];
  const int64_t begin =
      static_cast<int64_t>(static_cast<int>(blockIdx.x) - part.first_block) * kOptimizerBlock;
  double sum = 0;
#pragma unroll
  for (int u = 0; u < kOptimizerUnroll; ++u) {
    const int64_t index =
        begin + (static_cast<int64_t>(u) * kThreads + static_cast<int>(threadIdx.x)) * kRun;
    const int64_t left = part.elems - index;
    const int count = left < 0 ? 0 : left < kRun ? static_cast<int>(left) : kRun;
    float value[kRun];
    LoadElements(part.element, part.g, index, part.vector != 0 && count == kRun, count, value);
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      sum += static_cast<double>(value[i]) * static_cast<double>(value[i]);
    }
  }
  sum = SumOfBlock(sum);
  if (threadIdx.x == 0) p.planes[blockIdx.x] = sum;
}

LOWRANK_DEVICE void NormTotalBody(const NormTotalParams& p) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < p.count; i += kThreads) sum += p.planes[i];
  sum = SumOfBlock(sum);
  if (threadIdx.x == 0) *p.norm = static_cast<float>(SqrtOf(sum));
}

}  // namespace

LOWRANK_KERNEL(optimizer_adamw_kernel, OptimizerStepParams, kThreads, 4) {
  StepBody<OptimizerRule<Optimizer::kAdamW>>(p);
}

LOWRANK_KERNEL(optimizer_advance_kernel, OptimizerNow, 32, 1) {
  if (threadIdx.x != 0) return;
  const OptimizerMoment now = ReadMoment(p);
  if (StepApplies(now)) *p.steps_done = now.step;
}

LOWRANK_KERNEL(norm_squares_kernel, NormSquaresParams, kThreads, 4) { NormSquaresBody(p); }

LOWRANK_KERNEL(norm_total_kernel, NormTotalParams, kThreads, 1) { NormTotalBody(p); }

}  // namespace lowrank::gpu
