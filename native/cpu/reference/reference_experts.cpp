/// The device "reference": a layer of experts, slot by slot.
#include <cmath>

#include "native/cpu/reference/reference_ops.h"

namespace lowrank::cpu::reference {
namespace {

/// The expert of each slot, or -1.
std::vector<int64_t> ExpertOfSlots(const RouteView& route) {
  std::vector<int64_t> experts(static_cast<size_t>(route.slots()), -1);
  for (int64_t e = 0; e < route.experts; ++e) {
    for (int64_t s = route.offsets.data[e]; s < route.offsets.data[e + 1]; ++s) {
      experts[static_cast<size_t>(s)] = e;
    }
  }
  return experts;
}

int64_t RowOf(const RouteView& route, bool gather, int64_t slot) {
  return gather ? route.order.data[slot] / route.k : slot;
}

/// The first element of an expert's factor, or of the one that all share.
int64_t FactorAt(const TensorView& factor, int64_t expert, int64_t rows) {
  return factor.rows == rows ? 0 : expert * rows * factor.cols;
}

/// The softmax of a row of router logits; 0 for what does not count.
std::vector<double> Shares(const TensorView& logits, int64_t m, const int32_t* chosen, int64_t k,
                           bool chosen_only) {
  const int64_t E = logits.cols;
  std::vector<double> shares(static_cast<size_t>(E), 0);
  const double largest = LoadElement(logits.data, logits.dtype, m * E + chosen[0]);
  double sum = 0;
  for (int64_t e = 0; e < E; ++e) {
    if (chosen_only && std::find(chosen, chosen + k, e) == chosen + k) continue;
    double& share = shares[static_cast<size_t>(e)];
    share = std::exp(LoadElement(logits.data, logits.dtype, m * E + e) - largest);
    sum += share;
  }
  for (double& share : shares) share /= sum;
  return shares;
}

}  // namespace

Status RouteRows(const RouteRowsOp& op, const RunContext& context) {
  int32_t slot = 0;
  for (int64_t e = 0; e <= op.experts; ++e) {
    op.offsets.data[e] = slot;
    ForEach(context, op.chosen.count, [&](int64_t i) {
      const int64_t chosen = op.chosen.data[i];
      const bool dropped = chosen < 0 || chosen >= op.experts;
      if (e == op.experts ? !dropped : chosen != e) return;
      op.order.data[slot] = static_cast<int32_t>(i);
      op.inverse.data[i] = slot++;
    });
  }
  return Status();
}

Status SelectExperts(const SelectExpertsOp& op, const RunContext& context) {
  const int64_t E = op.logits.cols;
  const int64_t k = op.gates.cols;
  ForEach(context, op.logits.rows, [&](int64_t m) {
    int32_t* chosen = op.chosen.data + m * k;
    std::vector<int32_t> by_size(static_cast<size_t>(E));
    for (int64_t e = 0; e < E; ++e) by_size[static_cast<size_t>(e)] = static_cast<int32_t>(e);
    const auto logit = [&](int64_t e) {
      return LoadElement(op.logits.data, op.logits.dtype, m * E + e);
    };
    std::stable_sort(by_size.begin(), by_size.end(), [&](int32_t a, int32_t b) {
      const double left = logit(a);
      const double right = logit(b);
      return left > right || (std::isnan(left) && !std::isnan(right));
    });
    std::copy_n(by_size.begin(), k, chosen);
    const std::vector<double> shares = Shares(op.logits, m, chosen, k, op.chosen_only);
    for (int64_t j = 0; j < k; ++j) {
      Store(op.gates, m * k + j, shares[static_cast<size_t>(chosen[j])], false);
    }
  });
  return Status();
}

Status SelectExpertsBackward(const SelectExpertsBackwardOp& op, const RunContext& context) {
  const int64_t E = op.logits.cols;
  const int64_t k = op.gates.cols;
  ForEach(context, op.logits.rows, [&](int64_t m) {
    const int32_t* chosen = op.chosen.data + m * k;
    std::vector<double> gradient(static_cast<size_t>(E), 0);
    double along = 0;
    for (int64_t j = 0; j < k; ++j) {
      const double given = LoadElement(op.d_gates.data, DType::kF32, m * k + j);
      gradient[static_cast<size_t>(chosen[j])] += given;
      along += LoadElement(op.gates.data, DType::kF32, m * k + j) * given;
    }
    const std::vector<double> shares = Shares(op.logits, m, chosen, k, op.chosen_only);
    for (int64_t e = 0; e < E; ++e) {
      const double share = shares[static_cast<size_t>(e)];
      const double value = share == 0 ? 0 : share * (gradient[static_cast<size_t>(e)] - along);
      Store(op.d_logits, m * E + e, value, false);
    }
  });
  return Status();
}

Status ExpertsForward(const ExpertsForwardOp& op, const RunContext& context) {
  const int64_t K = op.x.cols;
  const int64_t N = op.y.cols;
  const int64_t r = op.lora_a.present ? op.lora_b.cols : 0;
  const std::vector<int64_t> experts = ExpertOfSlots(op.route);
  const std::vector<double> x = Load(op.x, context);
  const std::vector<double> lora_a = r == 0 ? x : Load(op.lora_a, context);
  const std::vector<double> lora_b = r == 0 ? x : Load(op.lora_b, context);
  std::vector<double> row(static_cast<size_t>(K));
  for (int64_t s = 0; s < op.route.slots(); ++s) {
    const int64_t e = experts[static_cast<size_t>(s)];
    const double* x_row = e < 0 ? nullptr : x.data() + RowOf(op.route, op.gather, s) * K;
    std::vector<double> h(static_cast<size_t>(r), 0);
    for (int64_t j = 0; j < r; ++j) {
      const double value =
          e < 0 ? 0 : Dot(x_row, lora_a.data() + FactorAt(op.lora_a, e, r) + j * K, K);
      Store(op.h, s * r + j, value, false);
      h[static_cast<size_t>(j)] = LoadElement(op.h.data, DType::kF32, s * r + j);
    }
    for (int64_t n = 0; n < N; ++n) {
      Poll(context);
      double value = 0;
      if (e >= 0) {
        LoadWeightRow(op.w, op.x.dtype, e * N + n, &row);
        value = Dot(x_row, row.data(), K);
        if (op.bias.present) value += LoadElement(op.bias.data, op.bias.dtype, e * N + n);
        if (r > 0) {
          value += op.scaling * Dot(h.data(), lora_b.data() + FactorAt(op.lora_b, e, N) + n * r, r);
        }
      }
      Store(op.y, s * N + n, value, false);
    }
  }
  return Status();
}

Status ExpertsBackward(const ExpertsBackwardOp& op, const RunContext& context) {
  const int64_t K = op.w.cols();
  const int64_t N = op.dy.cols;
  const int64_t r = op.lora_a.present ? op.lora_b.cols : 0;
  const std::vector<int64_t> experts = ExpertOfSlots(op.route);
  const std::vector<double> dy = Load(op.dy, context);
  const std::vector<double> lora_a = r == 0 ? dy : Load(op.lora_a, context);
  const std::vector<double> lora_b = r == 0 ? dy : Load(op.lora_b, context);
  std::vector<double> d_lora_a(static_cast<size_t>(op.d_lora_a.elems()), 0);
  std::vector<double> d_lora_b(static_cast<size_t>(op.d_lora_b.elems()), 0);
  std::vector<double> row(static_cast<size_t>(K));
  for (int64_t s = 0; s < op.route.slots(); ++s) {
    const int64_t e = experts[static_cast<size_t>(s)];
    std::vector<double> dx(static_cast<size_t>(K), 0);
    std::vector<double> dh(static_cast<size_t>(r), 0);
    for (int64_t n = 0; n < N && e >= 0; ++n) {
      Poll(context);
      const double factor = dy[static_cast<size_t>(s * N + n)];
      LoadWeightRow(op.w, op.dy.dtype, e * N + n, &row);
      for (int64_t k = 0; k < K; ++k) {
        dx[static_cast<size_t>(k)] += factor * row[static_cast<size_t>(k)];
      }
      const int64_t at = r == 0 ? 0 : FactorAt(op.lora_b, e, N) + n * r;
      for (int64_t j = 0; j < r; ++j) {
        dh[static_cast<size_t>(j)] += op.scaling * factor * lora_b[static_cast<size_t>(at + j)];
        if (!op.d_lora_b.present) continue;
        d_lora_b[static_cast<size_t>(at + j)] +=
            op.scaling * factor * LoadElement(op.h.data, DType::kF32, s * r + j);
      }
    }
    for (int64_t j = 0; j < r && e >= 0; ++j) {
      const double value = static_cast<float>(dh[static_cast<size_t>(j)]);  // dh is f32
      const int64_t at = FactorAt(op.lora_a, e, r) + j * K;
      const int64_t x_at = RowOf(op.route, op.gather, s) * K;
      for (int64_t k = 0; k < K; ++k) {
        dx[static_cast<size_t>(k)] += value * lora_a[static_cast<size_t>(at + k)];
        if (!op.d_lora_a.present) continue;
        d_lora_a[static_cast<size_t>(at + k)] +=
            value * LoadElement(op.x.data, op.x.dtype, x_at + k);
      }
    }
    if (!op.dx.present) continue;
    ForEach(context, K,
            [&](int64_t k) { Store(op.dx, s * K + k, dx[static_cast<size_t>(k)], false); });
  }
  ForEach(context, op.d_lora_a.elems(),
          [&](int64_t i) { Store(op.d_lora_a, i, d_lora_a[static_cast<size_t>(i)], false); });
  ForEach(context, op.d_lora_b.elems(),
          [&](int64_t i) { Store(op.d_lora_b, i, d_lora_b[static_cast<size_t>(i)], false); });
  return Status();
}

Status CombineRows(const CombineRowsOp& op, const RunContext& context) {
  const int64_t N = op.y.cols;
  const int64_t k = op.route.k;
  ForEach(context, op.out.elems(), [&](int64_t i) {
    double sum = 0;
    for (int64_t j = 0; j < k; ++j) {
      const int64_t pair = i / N * k + j;
      const int64_t slot = op.route.inverse.data[pair];
      if (slot >= op.route.kept()) continue;
      const double gate = op.gates.present ? LoadElement(op.gates.data, DType::kF32, pair) : 1;
      sum += gate * LoadElement(op.y.data, op.y.dtype, slot * N + i % N);
    }
    Store(op.out, i, sum, false);
  });
  return Status();
}

Status CombineRowsBackward(const CombineRowsBackwardOp& op, const RunContext& context) {
  const int64_t N = op.d_out.cols;
  for (int64_t pair = 0; pair < op.route.slots(); ++pair) {
    const int64_t slot = op.route.inverse.data[pair];
    const bool kept = slot < op.route.kept();
    const double gate = op.gates.present ? LoadElement(op.gates.data, DType::kF32, pair) : 1;
    double along = 0;
    ForEach(context, N, [&](int64_t n) {
      const double d_out = LoadElement(op.d_out.data, op.d_out.dtype, pair / op.route.k * N + n);
      if (kept && op.d_gates.present) {
        along += d_out * LoadElement(op.y.data, op.y.dtype, slot * N + n);
      }
      if (op.dy.present) Store(op.dy, slot * N + n, kept ? gate * d_out : 0, false);
    });
    if (op.d_gates.present) Store(op.d_gates, pair, along, false);
  }
  return Status();
}

}  // namespace lowrank::cpu::reference
