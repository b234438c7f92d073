/// The device "reference": a LoRA layer and its halves on either side of h, which is f32.
#include "native/cpu/reference/reference_ops.h"

namespace lowrank::cpu::reference {
namespace {

/// dx (+)= acc + gate ⊙ (dh · lora_a)
void StoreInputGrad(const std::vector<double>& acc, const std::vector<double>& dh,
                    const LoraShrinkBackwardOp& op, const RunContext& context) {
  const int64_t k_count = op.dx.cols;
  const int64_t r = op.lora_a.rows;
  const std::vector<double> lora_a = Load(op.lora_a, context);
  const Gate gate(op.dropout);
  ForEach(context, op.dx.elems(), [&](int64_t i) {
    double adapter = 0;
    for (int64_t j = 0; j < r; ++j) {
      adapter += dh[static_cast<size_t>(i / k_count * r + j)] *
                 lora_a[static_cast<size_t>(j * k_count + i % k_count)];
    }
    const double factor = gate(i);
    const double gated = factor == 0 ? 0 : factor * adapter;
    Store(op.dx, i, acc[static_cast<size_t>(i)] + gated, op.accumulate_dx);
  });
}

/// y = x · dequant(w)ᵀ + bias + scaling · (h · lora_bᵀ + lora_bias)
Status Expand(const LoraExpandOp& op, const TensorView& lora_bias, const RunContext& context) {
  const int64_t n_count = op.y.cols;
  const int64_t r = op.lora_b.cols;
  const std::vector<double> acc = BaseProduct(op.x, op.w, op.compute, context);
  const std::vector<double> h = Load(op.h, context);
  const std::vector<double> lora_b = Load(op.lora_b, context);
  ForEach(context, op.y.elems(), [&](int64_t i) {
    const int64_t n = i % n_count;
    double adapter = Dot(h.data() + i / n_count * r, lora_b.data() + n * r, r);
    if (lora_bias.present) adapter += LoadElement(lora_bias.data, lora_bias.dtype, n);
    double value = acc[static_cast<size_t>(i)] + op.scaling * adapter;
    if (op.bias.present) value += LoadElement(op.bias.data, op.bias.dtype, n);
    Store(op.y, i, value, false);
  });
  return Status();
}

}  // namespace

Status LoraForward(const LoraForwardOp& op, const RunContext& context) {
  LoraShrinkOp shrink;
  shrink.x = op.x;
  shrink.lora_a = op.lora_a;
  shrink.h = op.h;
  shrink.dropout = op.dropout;
  LOWRANK_RETURN_IF_ERROR(LoraShrink(shrink, context));
  LoraExpandOp expand;
  expand.x = op.x;
  expand.w = op.w;
  expand.bias = op.bias;
  expand.h = op.h;
  expand.lora_b = op.lora_b;
  expand.y = op.y;
  expand.scaling = op.scaling;
  expand.compute = op.compute;
  return Expand(expand, op.lora_bias, context);
}

Status LoraBackward(const LoraBackwardOp& op, const RunContext& context) {
  LoraExpandBackwardOp expand;
  expand.dy = op.dy;
  expand.h = op.h;
  expand.lora_b = op.lora_b;
  expand.d_lora_b = op.d_lora_b;
  expand.d_bias = op.d_bias;
  expand.accumulate_d_lora_b = op.accumulate_d_lora_b;
  expand.accumulate_d_bias = op.accumulate_d_bias;
  expand.scaling = op.scaling;
  std::vector<float> dh;
  if (op.dx.present || op.d_lora_a.present) {
    dh.resize(static_cast<size_t>(op.dy.rows * op.lora_b.cols));
    expand.dh = {dh.data(), DType::kF32, op.dy.rows, op.lora_b.cols, true};
  }
  LOWRANK_RETURN_IF_ERROR(LoraExpandBackward(expand, context));
  if (op.d_lora_bias.present) {
    const std::vector<double> scalings(static_cast<size_t>(op.dy.rows), op.scaling);
    StoreOuter(scalings, 1, Load(op.dy, context), op.dy.cols, op.dy.rows, op.d_lora_bias,
               op.accumulate_d_lora_bias, context);
  }
  LoraShrinkBackwardOp shrink;
  shrink.dy = op.dy;
  shrink.w = op.w;
  shrink.dh = expand.dh;
  shrink.x = op.x;
  shrink.lora_a = op.lora_a;
  shrink.dx = op.dx;
  shrink.d_lora_a = op.d_lora_a;
  shrink.accumulate_dx = op.accumulate_dx;
  shrink.accumulate_d_lora_a = op.accumulate_d_lora_a;
  shrink.dropout = op.dropout;
  return shrink.dh.present ? LoraShrinkBackward(shrink, context) : Status();
}

Status LoraShrink(const LoraShrinkOp& op, const RunContext& context) {
  const int64_t k_count = op.x.cols;
  const int64_t r = op.lora_a.rows;
  const std::vector<double> gated = Gated(op.x, op.dropout, context);
  const std::vector<double> lora_a = Load(op.lora_a, context);
  for (int64_t i = 0; i < op.h.elems(); ++i) {
    Poll(context);
    const double value =
        Dot(gated.data() + i / r * k_count, lora_a.data() + i % r * k_count, k_count);
    Store(op.h, i, op.scaling * value, false);
  }
  return Status();
}

Status LoraExpand(const LoraExpandOp& op, const RunContext& context) {
  LOWRANK_RETURN_IF_ERROR(Expand(op, TensorView(), context));
  return op.norms.present ? FactoredNorm(op.Norm(), context) : Status();
}

Status LoraExpandBackward(const LoraExpandBackwardOp& op, const RunContext& context) {
  const int64_t m_count = op.dy.rows;
  const int64_t n_count = op.dy.cols;
  const std::vector<double> dy = Load(op.dy, context);
  if (op.dh.present) {
    const std::vector<double> dh = AdapterGrad(dy, m_count, op.lora_b, op.scaling, context);
    ForEach(context, op.dh.elems(),
            [&](int64_t i) { Store(op.dh, i, dh[static_cast<size_t>(i)], op.accumulate_dh); });
  }
  if (op.d_lora_b.present) {
    std::vector<double> scaled = Load(op.h, context);
    for (double& value : scaled) value *= op.scaling;
    StoreOuter(dy, n_count, scaled, op.lora_b.cols, m_count, op.d_lora_b, op.accumulate_d_lora_b,
               context);
  }
  if (op.d_bias.present) {
    const std::vector<double> ones(static_cast<size_t>(m_count), 1);
    StoreOuter(ones, 1, dy, n_count, m_count, op.d_bias, op.accumulate_d_bias, context);
  }
  return Status();
}

Status LoraShrinkBackward(const LoraShrinkBackwardOp& op, const RunContext& context) {
  std::vector<double> dh = Load(op.dh, context);
  for (double& value : dh) value *= op.scaling;
  if (op.dx.present) {
    StoreInputGrad(BaseInputGrad(op.dy, op.w, context), dh, op, context);
  }
  if (op.d_lora_a.present) {
    StoreOuter(dh, op.lora_a.rows, Gated(op.x, op.dropout, context), op.lora_a.cols, op.dh.rows,
               op.d_lora_a, op.accumulate_d_lora_a, context);
  }
  return Status();
}

Status WeightGrad(const WeightGradOp& op, const RunContext& context) {
  StoreOuter(Load(op.dy, context), op.dy.cols, Load(op.x, context), op.x.cols, op.x.rows, op.dw,
             op.accumulate, context);
  return Status();
}

}  // namespace lowrank::cpu::reference
