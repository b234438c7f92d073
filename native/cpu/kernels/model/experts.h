/// A layer of experts (native/core/ops/expert_ops.h has the formulas).
///
/// Products   the slots of an expert are one after another, so each expert is a product of the
///            device's set over its rows of w: the routes, the tasks and the bits of matmul,
///            loraForward and loraBackward. Rows of x are copied in that order where they are not
///            in it
/// Scratch    the rows of the expert with the most; the sums in f32 of 16-bit gradients of factors
///            that all experts share
/// Numerics   gates in double; sums of gates · y in f32 without fma, ascending; of dOut · y in
///            double in kSumLanes lanes: every instruction set gives the same bits
/// Tasks      an expert after another, its rows and columns side by side; else rows
#pragma once

#include "native/cpu/kernels/layers/lora_shared.h"
#include "native/cpu/kernels/model/norm.h"
#include "native/host_device/expert_gates.h"

namespace lowrank::cpu::LOWRANK_ISA {

LOWRANK_OP Outcome RouteRows(const RouteRowsOp& op, const RunContext& context) {
  Run run(context);
  const int64_t E = op.experts;
  const auto expert_of = [&](int64_t pair) {
    const int64_t expert = op.chosen.data[pair];
    return expert < 0 || expert > E ? E : expert;  // E: dropped
  };
  int32_t next[kMostExperts + 2] = {};
  for (int64_t i = 0; i < op.chosen.count; ++i) ++next[expert_of(i) + 1];
  for (int64_t e = 0; e <= E; ++e) {
    next[e + 1] += next[e];
    op.offsets.data[e] = next[e];
  }
  for (int64_t i = 0; i < op.chosen.count; ++i) {
    const int32_t slot = next[expert_of(i)]++;
    op.order.data[slot] = static_cast<int32_t>(i);
    op.inverse.data[i] = slot;
  }
  return run.Result();
}

LOWRANK_OP Outcome SelectExperts(const SelectExpertsOp& op, const RunContext& context) {
  Run run(context);
  const int64_t E = op.logits.cols;
  const int64_t k = op.gates.cols;
  ForEachRow(run, op.logits.rows, E * (k + 8), [&](int64_t m) {
    alignas(64) float logits[kMostExperts];
    double terms[kMostExperts];
    bool taken[kMostExperts] = {};
    WidenRun(op.logits.data, op.logits.dtype, m * E, E, logits);
    int32_t* chosen = op.chosen.data + m * k;
    for (int64_t j = 0; j < k; ++j) {
      int64_t best = -1;
      for (int64_t e = 0; e < E; ++e) {
        if (!taken[e] && (best < 0 || ComesBefore(logits[e], logits[best]))) best = e;
      }
      taken[best] = true;
      chosen[j] = static_cast<int32_t>(best);
    }
    const float largest = logits[chosen[0]];
    double sum = 0;
    for (int64_t e = 0; e < E; ++e) {
      terms[e] = op.chosen_only && !taken[e] ? 0.0 : GateTerm(logits[e], largest);
      sum += terms[e];
    }
    float* gates = static_cast<float*>(op.gates.data) + m * k;
    for (int64_t j = 0; j < k; ++j) gates[j] = static_cast<float>(terms[chosen[j]] / sum);
  });
  return run.Result();
}

LOWRANK_OP Outcome SelectExpertsBackward(const SelectExpertsBackwardOp& op,
                                         const RunContext& context) {
  Run run(context);
  const int64_t E = op.logits.cols;
  const int64_t k = op.gates.cols;
  ForEachRow(run, op.logits.rows, E * 8, [&](int64_t m) {
    alignas(64) float values[kMostExperts];
    double terms[kMostExperts];
    double d_gates[kMostExperts] = {};
    bool taken[kMostExperts] = {};
    WidenRun(op.logits.data, op.logits.dtype, m * E, E, values);
    const int32_t* chosen = op.chosen.data + m * k;
    const float* gates = static_cast<const float*>(op.gates.data) + m * k;
    const float* given = static_cast<const float*>(op.d_gates.data) + m * k;
    double along = 0;
    for (int64_t j = 0; j < k; ++j) {
      if (chosen[j] < 0) continue;
      taken[chosen[j]] = true;
      d_gates[chosen[j]] += static_cast<double>(given[j]);
      along += static_cast<double>(gates[j]) * static_cast<double>(given[j]);
    }
    const float largest = chosen[0] < 0 ? 0.0f : values[chosen[0]];
    double sum = 0;
    for (int64_t e = 0; e < E; ++e) {
      terms[e] = op.chosen_only && !taken[e] ? 0.0 : GateTerm(values[e], largest);
      sum += terms[e];
    }
    for (int64_t e = 0; e < E; ++e) {
      const double share = op.chosen_only && !taken[e] ? 0.0 : terms[e] / sum;
      values[e] = static_cast<float>(share == 0 ? 0.0 : share * (d_gates[e] - along));
    }
    NarrowRun(op.d_logits.data, op.d_logits.dtype, m * E, E, values);
  });
  return run.Result();
}

/// The slots of an expert.
struct ExpertSlots {
  int64_t expert;
  int64_t first;
  int64_t count;
};

/// Calls body(segment) -> Outcome for each expert that has slots.
template <typename Body>
LOWRANK_INLINE Outcome ForEachExpert(Run& run, const RouteView& route, const Body& body) {
  for (int64_t e = 0; e < route.experts && !run.Stopped(); ++e) {
    const int64_t first = route.offsets.data[e];
    const int64_t count = route.offsets.data[e + 1] - first;
    if (count <= 0) continue;
    const Outcome outcome = body(ExpertSlots{e, first, count});
    if (outcome.code != Code::kOk) return outcome;
  }
  return run.Result();
}

/// The rows of x of a segment, one after another; copied if they are gathered. No data if memory
/// ran out.
LOWRANK_INLINE TensorView SegmentRows(Run& run, const TensorView& x, const RouteView& route,
                                      bool gather, const ExpertSlots& segment) {
  if (!gather) return x.Rows(segment.first, segment.count);
  TensorView rows = x;
  rows.rows = segment.count;
  char* room = run.Get<char>(kRoundedSlot, static_cast<int64_t>(rows.bytes()));
  rows.data = room;
  if (room == nullptr) return rows;
  const size_t row_bytes = static_cast<size_t>(x.cols) * DTypeBytes(x.dtype);
  ForEachRow(run, segment.count, x.cols, [&](int64_t i) {
    const int64_t row = route.order.data[segment.first + i] / route.k;
    std::memcpy(room + static_cast<size_t>(i) * row_bytes,
                static_cast<const char*>(x.data) + static_cast<size_t>(row) * row_bytes, row_bytes);
  });
  return rows;
}

/// Rows e · rows of a factor that each expert has, or the one that all share.
LOWRANK_INLINE TensorView FactorOf(const TensorView& factor, int64_t expert, int64_t rows) {
  return factor.rows == rows ? factor : factor.Rows(expert * rows, rows);
}

LOWRANK_INLINE void ZeroRows(const TensorView& view, int64_t first) {
  if (!view.present || view.elems() == 0 || first >= view.rows) return;
  const TensorView rest = view.Rows(first, view.rows - first);
  std::memset(rest.data, 0, rest.bytes());
}

/// @param products of the set that the device runs
LOWRANK_OP Outcome ExpertsForward(const ExpertsForwardOp& op, const RunContext& context,
                                  const IsaKernels& products) {
  Run run(context);
  const int64_t N = op.y.cols;
  const int64_t kept = op.route.kept();
  ZeroRows(op.y, kept);
  ZeroRows(op.h, kept);
  return ForEachExpert(run, op.route, [&](const ExpertSlots& segment) {
    const TensorView x = SegmentRows(run, op.x, op.route, op.gather, segment);
    if (run.Stopped()) return run.Result();
    LoraForwardOp part;
    part.x = x;
    part.w = op.w.Rows(segment.expert * N, N);
    if (op.bias.present) part.bias = op.bias.Rows(segment.expert, 1);
    part.y = op.y.Rows(segment.first, segment.count);
    if (!op.lora_a.present) return products.matmul(BaseOf(part), context);
    const int64_t r = op.lora_b.cols;
    part.lora_a = FactorOf(op.lora_a, segment.expert, r);
    part.lora_b = FactorOf(op.lora_b, segment.expert, N);
    part.h = op.h.Rows(segment.first, segment.count);
    part.scaling = op.scaling;
    return products.lora_forward(part, context);
  });
}

/// Where the gradient of a factor is summed: the output, or for a shared one of 16 bits f32
/// scratch.
struct FactorSums {
  TensorView out;
  TensorView sums;
  bool shared = false;

  FactorSums(const TensorView& output, int64_t rows) : out(output), sums(output) {
    shared = output.present && output.rows == rows;
  }
  int64_t ScratchElems() const { return shared && out.dtype != DType::kF32 ? out.elems() : 0; }
  void Begin(float* scratch) {
    if (ScratchElems() != 0) sums = FloatView(scratch, out.rows, out.cols);
    ZeroRows(sums, 0);
  }
  TensorView Of(int64_t expert, int64_t rows) const {
    return sums.present ? FactorOf(sums, expert, rows) : sums;
  }
  void End() const {
    if (ScratchElems() == 0) return;
    NarrowRun(out.data, out.dtype, 0, out.elems(), static_cast<const float*>(sums.data));
  }
};

LOWRANK_OP Outcome ExpertsBackward(const ExpertsBackwardOp& op, const RunContext& context,
                                   const IsaKernels& products) {
  Run run(context);
  const int64_t N = op.dy.cols;
  const int64_t r = op.lora_b.cols;
  ZeroRows(op.dx, op.route.kept());
  FactorSums d_lora_a(op.d_lora_a, r);
  FactorSums d_lora_b(op.d_lora_b, N);
  const int64_t before = d_lora_a.ScratchElems();
  float* scratch = run.Get<float>(kNormSlot, before + d_lora_b.ScratchElems());
  if (scratch == nullptr) return run.Result();
  d_lora_a.Begin(scratch);
  d_lora_b.Begin(scratch + before);
  const Outcome outcome = ForEachExpert(run, op.route, [&](const ExpertSlots& segment) {
    const TensorView dy = op.dy.Rows(segment.first, segment.count);
    const WeightView w = op.w.Rows(segment.expert * N, N);
    const TensorView dx = op.dx.present ? op.dx.Rows(segment.first, segment.count) : op.dx;
    if (!op.lora_a.present) {
      if (!dx.present) return run.Result();
      MatmulInputGradOp base;
      base.dy = dy;
      base.w = w;
      base.dx = dx;
      return products.matmul_input_grad(base, context);
    }
    LoraBackwardOp part;
    part.dy = dy;
    part.w = w;
    part.dx = dx;
    part.lora_a = FactorOf(op.lora_a, segment.expert, r);
    part.lora_b = FactorOf(op.lora_b, segment.expert, N);
    part.d_lora_a = d_lora_a.Of(segment.expert, r);
    part.d_lora_b = d_lora_b.Of(segment.expert, N);
    part.accumulate_d_lora_a = d_lora_a.shared;
    part.accumulate_d_lora_b = d_lora_b.shared;
    part.scaling = op.scaling;
    if (part.d_lora_a.present) part.x = SegmentRows(run, op.x, op.route, op.gather, segment);
    if (part.d_lora_b.present) part.h = op.h.Rows(segment.first, segment.count);
    return run.Stopped() ? run.Result() : products.lora_backward(part, context);
  });
  if (outcome.code != Code::kOk) return outcome;
  d_lora_a.End();
  d_lora_b.End();
  return run.Result();
}

LOWRANK_OP Outcome CombineRows(const CombineRowsOp& op, const RunContext& context) {
  Run run(context);
  const int64_t N = op.y.cols;
  const int64_t k = op.route.k;
  const int64_t kept = op.route.kept();
  const float* gates = static_cast<const float*>(op.gates.data);
  ForEachRow(run, op.out.rows, N * k, [&](int64_t m) {
    alignas(64) float sum[kStripElems];
    alignas(64) float value[kStripElems];
    for (int64_t n = 0; n < N; n += kStripElems) {
      const int64_t count = Min(kStripElems, N - n);
      std::memset(sum, 0, sizeof(sum));
      for (int64_t j = 0; j < k; ++j) {
        const int64_t slot = op.route.inverse.data[m * k + j];
        if (slot >= kept) continue;
        WidenRun(op.y.data, op.y.dtype, slot * N + n, count, value);
        const float gate = op.gates.present ? gates[m * k + j] : 1.0f;
        for (int64_t i = 0; i < count; ++i) sum[i] += gate * value[i];
      }
      NarrowRun(op.out.data, op.out.dtype, m * N + n, count, sum);
    }
  });
  return run.Result();
}

LOWRANK_OP Outcome CombineRowsBackward(const CombineRowsBackwardOp& op, const RunContext& context) {
  Run run(context);
  const int64_t N = op.d_out.cols;
  const int64_t kept = op.route.kept();
  const float* gates = static_cast<const float*>(op.gates.data);
  ZeroRows(op.dy, kept);
  ForEachRow(run, op.route.slots(), N * 2, [&](int64_t pair) {
    alignas(64) float d_out[kStripElems];
    alignas(64) float value[kStripElems];
    const int64_t slot = op.route.inverse.data[pair];
    const int64_t m = pair / op.route.k;
    const float gate = op.gates.present ? gates[pair] : 1.0f;
    DoubleSum products;
    for (int64_t n = 0; n < N && slot < kept; n += kStripElems) {
      const int64_t count = Min(kStripElems, N - n);
      WidenRun(op.d_out.data, op.d_out.dtype, m * N + n, count, d_out);
      if (op.d_gates.present) {
        WidenRun(op.y.data, op.y.dtype, slot * N + n, count, value);
        PadStrip(d_out, count);
        products.AddProducts(d_out, value, PadStrip(value, count));
      }
      if (!op.dy.present) continue;
      for (int64_t i = 0; i < count; ++i) value[i] = gate * d_out[i];
      NarrowRun(op.dy.data, op.dy.dtype, slot * N + n, count, value);
    }
    if (!op.d_gates.present) return;
    static_cast<float*>(op.d_gates.data)[pair] = static_cast<float>(products.Total());
  });
  return run.Result();
}

}  // namespace lowrank::cpu::LOWRANK_ISA
