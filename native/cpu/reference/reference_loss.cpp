/// The device "reference": rows of the embedding, and the loss behind the head.
#include <cmath>

#include "native/cpu/reference/reference_ops.h"

namespace lowrank::cpu::reference {

Status Embedding(const EmbeddingOp& op, const RunContext& context) {
  const int64_t D = op.y.cols;
  ForEach(context, op.y.elems(), [&](int64_t i) {
    const int64_t id = op.ids.data[i / D];
    const int64_t at = id * D + i % D;
    double value = 0;
    if (id >= 0) {
      value = op.table.quantised() ? op.table.quant.Value(at)
                                   : LoadElement(op.table.dense.data, op.table.dense.dtype, at);
    }
    Store(op.y, i, value * op.scale, false);
  });
  return Status();
}

Status LinearCrossEntropy(const LinearCrossEntropyOp& op, const RunContext& context) {
  const int64_t V = op.head.rows();
  const int64_t K = op.x.cols;
  // Logits, then what the gradient takes of each row of the head.
  std::vector<double> z = BaseProduct(op.x, op.head, Compute::kExact, context);
  for (int64_t m = 0; m < op.x.rows; ++m) {
    double* row = z.data() + m * V;
    const int64_t target = op.targets.data[m];
    std::vector<double> derivative(static_cast<size_t>(V), 1);
    double largest = -HUGE_VAL;
    for (int64_t v = 0; v < V; ++v) {
      if (op.softcap > 0) {
        const double t = std::tanh(row[v] / op.softcap);
        row[v] = op.softcap * t;
        derivative[static_cast<size_t>(v)] = 1 - t * t;
      }
      largest = std::max(largest, row[v]);
    }
    double sum = 0;
    for (int64_t v = 0; v < V; ++v) sum += std::exp(row[v] - largest);
    const double loss = target < 0 ? 0 : largest + std::log(sum) - row[target];
    Store(op.losses, m, loss, false);
    double weight = target < 0 ? 0 : op.scale;
    if (op.weights.present) weight *= LoadElement(op.weights.data, op.weights.dtype, m);
    for (int64_t v = 0; v < V; ++v) {
      const double p = std::exp(row[v] - largest) / sum - (v == target ? 1 : 0);
      row[v] = target < 0 ? 0 : weight * p * derivative[static_cast<size_t>(v)];
    }
  }
  if (!op.dx.present) return Status();
  std::vector<double> dx(static_cast<size_t>(op.x.rows * K), 0);
  std::vector<double> weight_row(static_cast<size_t>(K));
  for (int64_t v = 0; v < V; ++v) {
    LoadWeightRow(op.head, op.x.dtype, v, &weight_row);
    for (int64_t m = 0; m < op.x.rows; ++m) {
      Poll(context);
      const double factor = z[static_cast<size_t>(m * V + v)];
      for (int64_t k = 0; k < K; ++k) {
        dx[static_cast<size_t>(m * K + k)] += factor * weight_row[static_cast<size_t>(k)];
      }
    }
  }
  ForEach(context, op.x.rows * K,
          [&](int64_t i) { Store(op.dx, i, dx[static_cast<size_t>(i)], false); });
  return Status();
}

}  // namespace lowrank::cpu::reference
