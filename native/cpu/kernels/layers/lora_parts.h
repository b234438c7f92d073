/// The halves of a LoRA layer on either side of h, and the gradient of a dense weight: the code of
/// lora_forward.h and lora_backward.h with h or dh as an operand, so that both halves together give
/// the bits of the whole.
///
///   loraShrink           h  = scaling · (gate ⊙ x) · lora_aᵀ
///   loraExpand           y  = x · dequant(w)ᵀ + bias + scaling · h · lora_bᵀ
///   loraExpandBackward   dh = scaling · dy · lora_b, and d_lora_b, d_bias
///   loraShrinkBackward   dx = dy · dequant(w) + gate ⊙ (scaling · dh · lora_a), and d_lora_a
///   weightGrad           dw = dyᵀ · x
///
/// Numerics the adapter and weightGrad: in f32, sums over m in blocks of kKC
#pragma once

#include "native/cpu/kernels/layers/lora_backward.h"
#include "native/cpu/kernels/layers/lora_forward.h"

namespace lowrank::cpu::LOWRANK_ISA {

LOWRANK_OP Outcome LoraShrink(const LoraShrinkOp& op, const RunContext& context) {
  Run run(context);
  const Gate gate = MakeGate(op.dropout, op.x.cols);
  const RowSource x = DenseRows(op.x);
  const Shrink shrink = {&op.lora_a, op.lora_a.rows, static_cast<float*>(op.h.data),
                         gate.active ? &gate : nullptr, op.scaling};
  const int64_t step = ChunkRows<F32Policy>(op.x.rows, op.x.cols);
  for (int64_t m0 = 0; m0 < op.x.rows && !run.Stopped(); m0 += step) {
    PackedChunk chunk;
    chunk.rows = Min(step, op.x.rows - m0);
    chunk.order = NaturalOrder(op.x.cols);
    PackAndShrink<F32Policy, true>(run, x, m0, chunk, false, shrink);
  }
  return run.Result();
}

// weight_norms.h
LOWRANK_INLINE Outcome ForwardWithNorms(ForwardParts parts, const FactoredNormOp& op,
                                        const RunContext& context);

LOWRANK_OP Outcome LoraExpand(const LoraExpandOp& op, const RunContext& context) {
  const TensorView none;
  const ForwardParts parts = {op.x,  op.w, op.bias,    nullptr, &op.lora_b, none,
                              &op.h, op.y, op.scaling, nullptr, true};
  // One or two rows of f32 are bound by memory, and would only wait for rows of lora_a.
  const bool together =
      op.compute == Compute::kExact && (op.x.rows > kThinRows || op.x.dtype == DType::kBF16);
  if (op.norms.present && together) return ForwardWithNorms(parts, op.Norm(), context);
  Outcome outcome;
  if (OwnsForward(op)) {
    outcome = ForwardAs(op.compute, parts, context);
  } else {
    LoraExpandOp product = op;
    product.norms = none;
    outcome = Base().lora_expand(product, context);
  }
  if (outcome.code != Code::kOk || !op.norms.present) return outcome;
  return kKernels.factored_norm(op.Norm(), context);
}

LOWRANK_OP Outcome LoraExpandBackward(const LoraExpandBackwardOp& op, const RunContext& context) {
  Run run(context);
  const TensorView none;
  if (op.dh.present && op.dh.cols != 0) {
    InputGrad<F32Policy>(run, {op.dy, nullptr, nullptr, &op.lora_b, &op.dh, nullptr, false,
                               op.scaling, nullptr, op.accumulate_dh});
  }
  if (run.Stopped()) return run.Result();
  FactorBGrad(run, {op.dy, op.h, op.d_lora_b, op.d_bias, none, op.accumulate_d_lora_b,
                    op.accumulate_d_bias, false, op.scaling});
  return run.Result();
}

LOWRANK_OP Outcome LoraShrinkBackward(const LoraShrinkBackwardOp& op, const RunContext& context) {
  Run run(context);
  const Gate gate_value = MakeGate(op.dropout, op.lora_a.cols);
  const Gate* gate = gate_value.active ? &gate_value : nullptr;
  if (op.dx.present) {
    const InputGradParts parts = {op.dy,
                                  &op.w,
                                  &op.lora_a,
                                  nullptr,
                                  op.dh.cols == 0 ? nullptr : &op.dh,
                                  &op.dx,
                                  op.accumulate_dx,
                                  0,
                                  gate,
                                  false,
                                  op.scaling};
    WithPolicy(op.dy.dtype, op.w, [&](auto policy) { InputGrad<decltype(policy)>(run, parts); });
  }
  if (run.Stopped()) return run.Result();
  if (op.d_lora_a.present) {
    FactorAGrad(run, op.dh, op.x, gate, op.scaling, op.d_lora_a, op.accumulate_d_lora_a);
  }
  return run.Result();
}

LOWRANK_OP Outcome WeightGrad(const WeightGradOp& op, const RunContext& context) {
  Run run(context);
  SumOverRows(run, op.dy, false, DenseRows(op.x),
              [&](const Block& block, float* c) { StoreTile(block, c, op.dw, 0, op.accumulate); });
  return run.Result();
}

}  // namespace lowrank::cpu::LOWRANK_ISA
