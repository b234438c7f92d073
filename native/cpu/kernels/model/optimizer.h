/// Steps of optimisers, and the norm of gradients.
///
/// Operands   p, g any dtype · states f32 · norm, lr, steps done [1] f32
/// Numerics   native/host_device/optimizer_step.h; the norm as GlobalNormOp says: every instruction
///            set gives the same bits
/// Tasks      pieces of kOptimizerPiece elements
/// Traffic    each tensor is read once, and written once where it changes: AdamW over f32 moves 28
///            bytes an element
#pragma once

#include "native/cpu/kernels/model/norm.h"
#include "native/host_device/optimizer_step.h"

namespace lowrank {

template <>
struct RootLanes<cpu::LOWRANK_ISA::VecF> {
  LOWRANK_MAP_INLINE cpu::LOWRANK_ISA::VecF Sqrt(cpu::LOWRANK_ISA::VecF value) {
    return cpu::LOWRANK_ISA::SqrtLanes(value);
  }
};

}  // namespace lowrank

namespace lowrank::cpu::LOWRANK_ISA {

/// The part that owns a piece.
template <typename Part>
LOWRANK_INLINE const Part& PartOf(const Part* parts, int64_t count, int64_t piece) {
  int64_t low = 0;
  int64_t high = count;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    if (parts[middle].first_piece <= piece) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return parts[low];
}

LOWRANK_OP Outcome GlobalNorm(const GlobalNormOp& op, const RunContext& context) {
  static_assert(GlobalNormOp::kLanes == kSumLanes && kOptimizerPiece % kStripElems == 0);
  Run run(context);
  double* sums = run.Get<double>(kNormSlot, op.pieces);
  if (sums == nullptr) return run.Result();
  run.ForEach(op.pieces, op.pieces * kOptimizerPiece, [&](int64_t piece) {
    if (run.Stopped()) return;
    const GradientPart& part = PartOf(op.parts, op.count, piece);
    const int64_t begin = (piece - part.first_piece) * kOptimizerPiece;
    const int64_t end = Min(begin + kOptimizerPiece, part.g.elems());
    alignas(64) float strip[kStripElems];
    DoubleSum squares;
    for (int64_t i = begin; i < end; i += kStripElems) {
      const int64_t count = Min(kStripElems, end - i);
      WidenRun(part.g.data, part.g.dtype, i, count, strip);
      squares.AddProducts(strip, strip, PadStrip(strip, count));
    }
    sums[piece] = squares.Total();
  });
  if (run.Stopped()) return run.Result();
  double sum = 0;
  for (int64_t piece = 0; piece < op.pieces; ++piece) sum += sums[piece];
  *static_cast<float*>(op.norm.data) = static_cast<float>(__builtin_sqrt(sum));
  return run.Result();
}

/// Elements [begin, end) of a part.
template <typename Rule>
LOWRANK_INLINE void StepPiece(const Rule& rule, const ParameterPart& part, DType p_dtype,
                              DType g_dtype, int64_t begin, int64_t end) {
  float* states[Rule::kStates];
  for (int s = 0; s < Rule::kStates; ++s) states[s] = static_cast<float*>(part.states[s].data);
  int64_t i = begin;
  for (; i + kVL <= end; i += kVL) {
    VecF p = LoadWide(part.p.data, p_dtype, i);
    VecF state[Rule::kStates];
    for (int s = 0; s < Rule::kStates; ++s) state[s] = Load(states[s] + i);
    Rule::Update(rule, LoadWide(part.g.data, g_dtype, i), &p, state);
    for (int s = 0; s < Rule::kStates; ++s) Store(states[s] + i, state[s]);
    StoreNarrow(part.p.data, p_dtype, i, p);
  }
  for (; i < end; ++i) {
    float p = ScalarWiden(part.p.data, p_dtype, i);
    float state[Rule::kStates];
    for (int s = 0; s < Rule::kStates; ++s) state[s] = states[s][i];
    Rule::Update(rule, ScalarWiden(part.g.data, g_dtype, i), &p, state);
    for (int s = 0; s < Rule::kStates; ++s) states[s][i] = state[s];
    ScalarNarrow(part.p.data, p_dtype, i, p);
  }
}

template <typename Rule>
LOWRANK_INLINE void StepAll(Run& run, const OptimizerStepOp& op, const OptimizerMoment& now) {
  run.ForEach(op.pieces, op.pieces * kOptimizerPiece, [&](int64_t piece) {
    if (run.Stopped()) return;
    const ParameterPart& part = PartOf(op.parts, op.count, piece);
    const Rule rule = Rule::Of(op.settings, now, part.lr_scale, part.weight_decay);
    const int64_t begin = (piece - part.first_piece) * kOptimizerPiece;
    const int64_t end = Min(begin + kOptimizerPiece, part.p.elems());
    if (part.p.dtype == DType::kF32 && part.g.dtype == DType::kF32) {
      StepPiece(rule, part, DType::kF32, DType::kF32, begin, end);
    } else {
      StepPiece(rule, part, part.p.dtype, part.g.dtype, begin, end);
    }
  });
}

LOWRANK_OP Outcome OptimizerStep(const OptimizerStepOp& op, const RunContext& context) {
  Run run(context);
  const auto read = [](const TensorView& view, float otherwise) {
    return view.present ? *static_cast<const float*>(view.data) : otherwise;
  };
  OptimizerMoment now;
  now.lr = read(op.lr_at, op.lr);
  now.norm = read(op.norm, 0);
  now.step = static_cast<float>(op.step);
  if (op.steps_done.present) now.step = NextStep(read(op.steps_done, 0));
  if (!StepApplies(now)) return run.Result();
  switch (op.kind) {
#define LOWRANK_STEP(id, name)                           \
  case Optimizer::id:                                    \
    StepAll<OptimizerRule<Optimizer::id>>(run, op, now); \
    break;
    LOWRANK_FOR_EACH_OPTIMIZER(LOWRANK_STEP)
#undef LOWRANK_STEP
  }
  if (op.steps_done.present && !run.Stopped()) {
    *static_cast<float*>(op.steps_done.data) = now.step;
  }
  return run.Result();
}

}  // namespace lowrank::cpu::LOWRANK_ISA
