/// The device "reference": a batch whose rows have different adapters, entry by entry.
#include "native/cpu/reference/reference_ops.h"

namespace lowrank::cpu::reference {
namespace {

/// g of an adapter's entry i.
double RowScale(const TensorView& row_scale, const AdapterTable& table, const AdapterRows& adapter,
                int64_t i) {
  if (!row_scale.present) return 1;
  return LoadElement(row_scale.data, row_scale.dtype, table.gates[adapter.first + i]);
}

DropoutSpec DropoutOf(const AdapterRows& adapter, uint64_t seed, const TensorView& mask) {
  DropoutSpec dropout;
  dropout.p = adapter.dropout;
  dropout.seed = seed;
  dropout.mask = mask;
  return dropout;
}

/// Rows of a matrix of the batch for one adapter, one after another.
std::vector<double> Gather(const std::vector<double>& all, int64_t cols, const AdapterRows& adapter,
                           const AdapterTable& table) {
  std::vector<double> rows(static_cast<size_t>(adapter.count * cols));
  for (int64_t i = 0; i < adapter.count; ++i) {
    const int64_t row = table.rows[adapter.first + i];
    std::copy_n(all.begin() + row * cols, cols, rows.begin() + i * cols);
  }
  return rows;
}

/// What an adapter adds to y over its rows, by element of y.
void AddForward(const GroupedForwardOp& op, const AdapterRows& adapter, const RunContext& context,
                std::vector<double>* acc) {
  const int64_t k_count = op.x.cols;
  const int64_t n_count = op.y.cols;
  const int64_t r = adapter.r();
  const std::vector<double> gated = Gated(op.x, DropoutOf(adapter, op.seed, op.mask), context);
  const std::vector<double> lora_a = Load(adapter.lora_a, context);
  const std::vector<double> lora_b = Load(adapter.lora_b, context);
  const TensorView h = adapter.HOf(op.h);
  for (int64_t i = 0; i < adapter.count; ++i) {
    const int64_t row = op.table.rows[adapter.first + i];
    for (int64_t j = 0; j < r; ++j) {
      Poll(context);
      Store(h, i * r + j, Dot(gated.data() + row * k_count, lora_a.data() + j * k_count, k_count),
            false);
    }
  }
  const std::vector<double> h_values = Load(h, context);
  for (int64_t i = 0; i < adapter.count; ++i) {
    const int64_t row = op.table.rows[adapter.first + i];
    const double factor = adapter.scaling * RowScale(op.row_scale, op.table, adapter, i);
    ForEach(context, n_count, [&](int64_t n) {
      double value = Dot(h_values.data() + i * r, lora_b.data() + n * r, r);
      if (adapter.lora_bias.present) {
        value += LoadElement(adapter.lora_bias.data, adapter.lora_bias.dtype, n);
      }
      (*acc)[static_cast<size_t>(row * n_count + n)] += factor * value;
    });
  }
}

/// d_row_scale of an adapter's entries, from their dy without g.
void StoreGateGrads(const GroupedBackwardOp& op, const AdapterRows& adapter,
                    const std::vector<double>& dy, const RunContext& context) {
  const int64_t n_count = op.dy.cols;
  const int64_t r = adapter.r();
  const std::vector<double> u = AdapterGrad(dy, adapter.count, adapter.lora_b, 1, context);
  const std::vector<double> h = Load(adapter.HOf(op.h), context);
  const std::vector<double> lora_bias =
      adapter.lora_bias.present ? Load(adapter.lora_bias, context) : std::vector<double>();
  ForEach(context, adapter.count, [&](int64_t i) {
    double sum = Dot(u.data() + i * r, h.data() + i * r, r);
    if (adapter.lora_bias.present) sum += Dot(dy.data() + i * n_count, lora_bias.data(), n_count);
    Store(op.d_row_scale, op.table.gates[adapter.first + i], adapter.scaling * sum,
          op.accumulate_d_row_scale);
  });
}

/// One adapter's dh and gradients. Adds its part to dx.
void AddBackward(const GroupedBackwardOp& op, const AdapterRows& adapter,
                 const std::vector<double>& dy_all, const RunContext& context,
                 std::vector<double>* dx) {
  const int64_t k_count = op.in_features;
  const int64_t n_count = op.dy.cols;
  const int64_t r = adapter.r();
  std::vector<double> dy = Gather(dy_all, n_count, adapter, op.table);
  if (op.d_row_scale.present) StoreGateGrads(op, adapter, dy, context);
  for (int64_t i = 0; i < adapter.count; ++i) {
    const double g = RowScale(op.row_scale, op.table, adapter, i);
    for (int64_t n = 0; n < n_count; ++n) dy[static_cast<size_t>(i * n_count + n)] *= g;
  }
  const DropoutSpec dropout = DropoutOf(adapter, op.seed, op.mask);
  if (op.dx.present || adapter.d_lora_a.present) {
    std::vector<double> dh =
        AdapterGrad(dy, adapter.count, adapter.lora_b, adapter.scaling, context);
    for (double& value : dh) value = static_cast<float>(value);  // dh is f32, as everywhere
    if (adapter.d_lora_a.present) {
      const std::vector<double> x =
          Gather(Gated(op.x, dropout, context), k_count, adapter, op.table);
      StoreOuter(dh, r, x, k_count, adapter.count, adapter.d_lora_a, adapter.accumulate_d_lora_a,
                 context);
    }
    if (op.dx.present) {
      const std::vector<double> lora_a = Load(adapter.lora_a, context);
      const Gate gate(dropout);
      for (int64_t i = 0; i < adapter.count; ++i) {
        const int64_t row = op.table.rows[adapter.first + i];
        ForEach(context, k_count, [&](int64_t k) {
          double sum = 0;
          for (int64_t j = 0; j < r; ++j) {
            sum +=
                dh[static_cast<size_t>(i * r + j)] * lora_a[static_cast<size_t>(j * k_count + k)];
          }
          const double factor = gate(row * k_count + k);
          (*dx)[static_cast<size_t>(row * k_count + k)] += factor == 0 ? 0 : factor * sum;
        });
      }
    }
  }
  if (adapter.d_lora_b.present) {
    std::vector<double> h = Load(adapter.HOf(op.h), context);
    for (double& value : h) value *= adapter.scaling;
    StoreOuter(dy, n_count, h, r, adapter.count, adapter.d_lora_b, adapter.accumulate_d_lora_b,
               context);
  }
  if (adapter.d_lora_bias.present) {
    const std::vector<double> scalings(static_cast<size_t>(adapter.count), adapter.scaling);
    StoreOuter(scalings, 1, dy, n_count, adapter.count, adapter.d_lora_bias,
               adapter.accumulate_d_lora_bias, context);
  }
}

}  // namespace

Status GroupedForward(const GroupedForwardOp& op, const RunContext& context) {
  const int64_t n_count = op.y.cols;
  std::vector<double> acc = BaseProduct(op.x, op.w, op.compute, context);
  for (int64_t e = 0; e < op.table.count; ++e) {
    AddForward(op, op.table.adapters[e], context, &acc);
  }
  ForEach(context, op.y.elems(), [&](int64_t i) {
    double value = acc[static_cast<size_t>(i)];
    if (op.bias.present) value += LoadElement(op.bias.data, op.bias.dtype, i % n_count);
    Store(op.y, i, value, false);
  });
  return Status();
}

Status GroupedBackward(const GroupedBackwardOp& op, const RunContext& context) {
  const std::vector<double> dy = Load(op.dy, context);
  std::vector<double> dx;
  if (op.dx.present) dx = BaseInputGrad(op.dy, op.w, context);
  if (op.d_row_scale.present && !op.accumulate_d_row_scale) {
    // For the empty slots.
    ForEach(context, op.d_row_scale.elems(),
            [&](int64_t i) { Store(op.d_row_scale, i, 0, false); });
  }
  for (int64_t e = 0; e < op.table.count; ++e) {
    AddBackward(op, op.table.adapters[e], dy, context, &dx);
  }
  if (op.dx.present) {
    ForEach(context, op.dx.elems(),
            [&](int64_t i) { Store(op.dx, i, dx[static_cast<size_t>(i)], op.accumulate_dx); });
  }
  if (op.d_bias.present) {
    const std::vector<double> ones(static_cast<size_t>(op.dy.rows), 1);
    StoreOuter(ones, 1, dy, op.dy.cols, op.dy.rows, op.d_bias, op.accumulate_d_bias, context);
  }
  return Status();
}

}  // namespace lowrank::cpu::reference
