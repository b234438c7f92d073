/// The loss behind a head, with the gradient of its input in the same pass over the head
/// (LinearCrossEntropyOp). It is attention with the head's rows as keys and as values: the largest
/// logit and the sum of exponentials run along, and what was summed before is scaled down where a
/// larger logit comes.
///
///   for a chunk of tokens, for a block of the vocabulary:
///     z    = x · blockᵀ                        the product of the device's set, stored in f32
///     max  = the largest so far, p = exp(z - max), sum = sum · exp(old max - max) + Σ p
///     acc  = acc · exp(old max - max) + p · block
///   loss = max + log sum - z[target], dx = weight · (acc / sum - head[target])
///
/// Scratch    z, p [512, 2048], acc and a product [512, K]: 8 MB + 4 KB · K, whatever V is
/// Numerics   exponentials within 2 ulp (softmax.h), the logarithm in double; sums of p in double
/// in
///            kSumLanes lanes; acc in f32. Blocks depend on V and on the head's format only: a
///            token has the same bits in any batch and on any number of threads
/// Budget     two products over the head; for each logit 40 operations a vector and 16 bytes in L2
///            or L3, which is 0.4 ns
#pragma once

#include "native/cpu/kernels/layers/lora_shared.h"
#include "native/cpu/kernels/model/norm.h"
#include "native/cpu/kernels/model/softmax.h"

namespace lowrank::cpu::LOWRANK_ISA {

// Fewer, and the head is decoded more often; more, and p leaves L2.
constexpr int64_t kLossRows = 512;
// Narrower, and adding each product to acc costs more than 3 % of it.
constexpr int64_t kVocabBlock = 2048;

/// What runs along the vocabulary for each token of a chunk.
struct LossState {
  float max = 0;
  float scale_down = 0;  // of acc, for the block at hand
  float target = 0;      // its logit, capped
  double sum = 0;
};

LOWRANK_INLINE float LargestOf(const float* values, int64_t count, float largest) {
  VecF most = Splat(largest);
  int64_t i = 0;
  for (; i + kVL <= count; i += kVL) {
    const VecF v = Load(values + i);
    most = v > most ? v : most;
  }
  for (; i < count; ++i) largest = values[i] > largest ? values[i] : largest;
  for (int l = 0; l < kVL; ++l) largest = most[l] > largest ? most[l] : largest;
  return largest;
}

/// z = cap · tanh(z / cap).
LOWRANK_INLINE void CapLogits(float* z, int64_t count, float cap) {
  const double scale = static_cast<double>(cap);
  const double inverse = 1.0 / scale;
  EachDouble(
      count, [&](int64_t i) { StoreFloats(z + i, TanhOf(LoadDoubles(z + i) * inverse) * scale); },
      [&](int64_t i) {
        z[i] = static_cast<float>(TanhOf(static_cast<double>(z[i]) * inverse) * scale);
      });
}
/// The derivative of the cap where it gave z: 1 - (z / cap)²; 1 without a cap.
LOWRANK_INLINE float CapDerivative(float z, float cap) {
  if (!(cap > 0)) return 1.0f;
  const double t = static_cast<double>(z) / static_cast<double>(cap);
  return static_cast<float>(1.0 - t * t);
}

/// out = exp(z - largest), 0 where it is below 2^-60: in a sum of 1 and more nobody sees those, and
/// denormals make the products after it ten times as slow.
LOWRANK_INLINE void ExpStrip(const float* z, int64_t count, float largest, float* out) {
  constexpr float kLeast = -60.0f;
  const auto of = [&](VecF value) {
    const VecF x = (value - Splat(largest)) * Splat(kLog2E);
    return x < Splat(kLeast) ? VecF{} : Exp2<6>(x);
  };
  int64_t i = 0;
  for (; i + kVL <= count; i += kVL) Store(out + i, of(Load(z + i)));
  if (i == count) return;
  alignas(64) float rest[kVL] = {};
  std::memcpy(rest, z + i, static_cast<size_t>(count - i) * sizeof(float));
  Store(rest, of(Load(rest)));
  std::memcpy(out + i, rest, static_cast<size_t>(count - i) * sizeof(float));
}

/// One token's logits of a block, `z`: takes them into `state` and leaves exp(z - max), times the
/// cap's derivative, rounded to `p`.
LOWRANK_INLINE void TakeLogits(const LinearCrossEntropyOp& op, float* z, int64_t count,
                               int64_t target, bool first, LossState* state, const TensorView& p,
                               int64_t p_begin) {
  alignas(64) float strip[kStripElems];
  const bool capped = op.softcap > 0;
  float largest = first ? -__builtin_inff() : state->max;
  for (int64_t v = 0; v < count; v += kStripElems) {
    const int64_t n = Min(kStripElems, count - v);
    if (capped) CapLogits(z + v, n, op.softcap);
    largest = LargestOf(z + v, n, largest);
  }
  if (target >= 0 && target < count) state->target = z[target];
  state->scale_down = first ? 0.0f : Exp2<6>(Splat((state->max - largest) * kLog2E))[0];
  state->max = largest;
  double lanes[kSumLanes] = {};
  for (int64_t v = 0; v < count; v += kStripElems) {
    const int64_t n = Min(kStripElems, count - v);
    ExpStrip(z + v, n, largest, strip);
    const int64_t padded = PadStrip(strip, n);
    for (int64_t i = 0; i < padded; i += kSumLanes) {
      for (int64_t l = 0; l < kSumLanes; ++l) lanes[l] += static_cast<double>(strip[i + l]);
    }
    if (!op.dx.present) continue;
    if (capped) {
      for (int64_t i = 0; i < n; ++i) strip[i] *= CapDerivative(z[v + i], op.softcap);
    }
    NarrowRun(p.data, p.dtype, p_begin + v, n, strip);
  }
  double total = 0;
  for (const double lane : lanes) total += lane;
  state->sum = (first ? 0.0 : state->sum * static_cast<double>(state->scale_down)) + total;
}

/// acc = acc · scale_down + part of one token, or part alone.
LOWRANK_INLINE void AddPart(float* acc, const float* part, int64_t K, bool first, float scale) {
  int64_t k = 0;
  for (; k + kVL <= K; k += kVL) {
    const VecF value = Load(part + k);
    Store(acc + k, first ? value : Load(acc + k) * scale + value);
  }
  for (; k < K; ++k) acc[k] = first ? part[k] : acc[k] * scale + part[k];
}

/// dx of one token; zeros without a target.
LOWRANK_INLINE void FinishInputGrad(const LinearCrossEntropyOp& op, const RowSource& head,
                                    int64_t m, const LossState& state, const float* acc) {
  const int64_t K = op.x.cols;
  const int64_t target = op.targets.data[m];
  float weight = op.scale;
  if (op.weights.present) weight *= static_cast<const float*>(op.weights.data)[m];
  const auto inverse = static_cast<float>(1.0 / state.sum);
  const float derivative = CapDerivative(state.target, op.softcap);
  alignas(64) float value[kStripElems];
  for (int64_t k = 0; k < K; k += kStripElems) {
    const int64_t count = Min(kStripElems, K - k);
    if (target < 0) {
      std::memset(value, 0, sizeof(value));
    } else {
      RowAsFloat(head, target, k, count, value);
      for (int64_t i = 0; i < count; ++i) {
        value[i] = weight * (acc[k + i] * inverse - derivative * value[i]);
      }
    }
    NarrowRun(op.dx.data, op.dx.dtype, m * K + k, count, value);
  }
}

/// @param products of the set that the device runs
LOWRANK_OP Outcome LinearCrossEntropy(const LinearCrossEntropyOp& op, const RunContext& context,
                                      const IsaKernels& products) {
  Run run(context);
  const int64_t V = op.head.rows();
  const int64_t K = op.x.cols;
  const int64_t step = op.head.quantised() ? op.head.quant.RowStep() : 1;
  const int64_t block = Min(CeilDiv(kVocabBlock, step) * step, V);
  const int64_t most_rows = Min(kLossRows, op.x.rows);
  const int64_t state_floats = static_cast<int64_t>(sizeof(LossState) / sizeof(float));
  float* scratch = run.Get<float>(kGateSlot, most_rows * (2 * block + 2 * K + state_floats) + 64);
  if (scratch == nullptr) return run.Result();
  float* z = scratch;
  TensorView p = FloatView(z + most_rows * block, most_rows, block);
  p.dtype = op.x.dtype;
  float* acc = z + 2 * most_rows * block;
  float* part = acc + most_rows * K;
  auto* states = reinterpret_cast<LossState*>(part + most_rows * K + (most_rows * K) % 2);
  const RowSource head = WeightRows(op.head, op.x.dtype);
  for (int64_t m0 = 0; m0 < op.x.rows; m0 += kLossRows) {
    const int64_t rows = Min(kLossRows, op.x.rows - m0);
    const TensorView x = op.x.Rows(m0, rows);
    for (int64_t m = 0; m < rows; ++m) states[m] = LossState();
    for (int64_t v0 = 0; v0 < V; v0 += block) {
      const int64_t count = Min(block, V - v0);
      const bool first = v0 == 0;
      const WeightView w = op.head.Rows(v0, count);
      MatmulOp forward;
      forward.x = x;
      forward.w = w;
      forward.y = FloatView(z, rows, count);
      const Outcome logits = products.matmul(forward, context);
      if (logits.code != Code::kOk) return logits;
      p.rows = rows;
      p.cols = count;
      ForEachRow(run, rows, count * 8, [&](int64_t m) {
        const int64_t target = static_cast<int64_t>(op.targets.data[m0 + m]) - v0;
        TakeLogits(op, z + m * count, count, target, first, states + m, p, m * count);
      });
      if (run.Stopped()) return run.Result();
      if (!op.dx.present) continue;
      MatmulInputGradOp backward;
      backward.dy = p;
      backward.w = w;
      backward.dx = FloatView(part, rows, K);
      const Outcome grads = products.matmul_input_grad(backward, context);
      if (grads.code != Code::kOk) return grads;
      ForEachRow(run, rows, K, [&](int64_t m) {
        AddPart(acc + m * K, part + m * K, K, first, states[m].scale_down);
      });
    }
    float* losses = static_cast<float*>(op.losses.data) + m0;
    ForEachRow(run, rows, op.dx.present ? K : 1, [&](int64_t m) {
      const LossState& state = states[m];
      const double lse = static_cast<double>(state.max) + LogOf(state.sum);
      losses[m] = op.targets.data[m0 + m] < 0
                      ? 0.0f
                      : static_cast<float>(lse - static_cast<double>(state.target));
      if (op.dx.present) FinishInputGrad(op, head, m0 + m, state, acc + m * K);
    });
    if (run.Stopped()) return run.Result();
  }
  return run.Result();
}

}  // namespace lowrank::cpu::LOWRANK_ISA
