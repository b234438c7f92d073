/// The device "reference": maps of features, products of blocks, norms of weights.
#include <cmath>

#include "native/cpu/reference/reference_ops.h"

namespace lowrank::cpu::reference {
namespace {

/// A product of blocks: c[i, j] = Σ_t a(i, t) · b(t, j), with the elements of a and b given by
/// functions.
template <typename A, typename B>
void StoreProducts(const TensorView& out, int64_t first, int64_t row_elems, int64_t rows,
                   int64_t cols, int64_t depth, const RunContext& context, const A& a, const B& b) {
  std::vector<double> sums(static_cast<size_t>(rows * cols), 0);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t t = 0; t < depth; ++t) {
      Poll(context);
      const double factor = a(i, t);
      for (int64_t j = 0; j < cols; ++j) {
        sums[static_cast<size_t>(i * cols + j)] += factor * b(t, j);
      }
    }
  }
  ForEach(context, rows * cols, [&](int64_t i) {
    Store(out, first + i / cols * row_elems + i % cols, sums[static_cast<size_t>(i)], false);
  });
}

}  // namespace

Status MapFeatures(const MapFeaturesOp& op, const RunContext& context) {
  const FeatureMapView& map = op.map;
  for (int64_t m = 0; m < op.x.rows; ++m) {
    ForEach(context, map.outputs, [&](int64_t j) {
      const int64_t first = map.begin == nullptr ? j : map.begin[j];
      const int64_t last = map.begin == nullptr ? j + 1 : map.begin[j + 1];
      // Starts from -0, the only value that changes no sum.
      double sum = last == first ? 0.0 : -0.0;
      for (int64_t p = first; p < last; ++p) {
        const int64_t t = map.index[p];
        sum += t < 0 ? 0.0 : LoadElement(op.x.data, op.x.dtype, m * map.inputs + t);
      }
      const int64_t at = m * map.outputs + j;
      double value = op.alpha * sum;
      if (op.c.present) value += op.beta * LoadElement(op.c.data, op.c.dtype, at);
      Store(op.y, at, value, false);
    });
  }
  return Status();
}

Status BlockMatmul(const BlockMatmulOp& op, const RunContext& context) {
  const int64_t blocks = op.blocks;
  const int64_t n_count = op.y.cols;
  const int64_t k_count = op.x.cols;
  const std::vector<double> x = Load(op.x, context);
  const std::vector<double> w = Load(op.w, context);
  for (int64_t g = 0; g < blocks; ++g) {
    StoreProducts(
        op.y, g * n_count, blocks * n_count, op.x.rows / blocks, n_count, k_count, context,
        [&](int64_t m, int64_t k) {
          return x[static_cast<size_t>((m * blocks + g) * k_count + k)];
        },
        [&](int64_t k, int64_t n) {
          return w[static_cast<size_t>((g * n_count + n) * k_count + k)];
        });
  }
  return Status();
}

Status BlockMatmulInputGrad(const BlockMatmulInputGradOp& op, const RunContext& context) {
  const int64_t blocks = op.blocks;
  const int64_t n_count = op.dy.cols;
  const int64_t k_count = op.dx.cols;
  const std::vector<double> dy = Load(op.dy, context);
  const std::vector<double> w = Load(op.w, context);
  for (int64_t g = 0; g < blocks; ++g) {
    StoreProducts(
        op.dx, g * k_count, blocks * k_count, op.dy.rows / blocks, k_count, n_count, context,
        [&](int64_t m, int64_t n) {
          return dy[static_cast<size_t>((m * blocks + g) * n_count + n)];
        },
        [&](int64_t n, int64_t k) {
          return w[static_cast<size_t>((g * n_count + n) * k_count + k)];
        });
  }
  return Status();
}

Status BlockWeightGrad(const BlockWeightGradOp& op, const RunContext& context) {
  const int64_t blocks = op.blocks;
  const int64_t n_count = op.dy.cols;
  const int64_t k_count = op.x.cols;
  const std::vector<double> dy = Load(op.dy, context);
  const std::vector<double> x = Load(op.x, context);
  for (int64_t g = 0; g < blocks; ++g) {
    StoreProducts(
        op.dw, g * n_count * k_count, k_count, n_count, k_count, op.dy.rows / blocks, context,
        [&](int64_t n, int64_t m) {
          return dy[static_cast<size_t>((m * blocks + g) * n_count + n)];
        },
        [&](int64_t m, int64_t k) {
          return x[static_cast<size_t>((m * blocks + g) * k_count + k)];
        });
  }
  return Status();
}

Status WeightNorms(const WeightNormsOp& op, const RunContext& context) {
  std::vector<double> row(static_cast<size_t>(op.w.cols()));
  for (int64_t n = 0; n < op.w.rows(); ++n) {
    Poll(context);
    LoadWeightRow(op.w, DType::kF32, n, &row);
    Store(op.norms, n, Dot(row.data(), row.data(), op.w.cols()), false);
  }
  return Status();
}

Status FactoredNorm(const FactoredNormOp& op, const RunContext& context) {
  const int64_t r = op.lora_a.rows;
  const int64_t n_count = op.w.rows();
  TensorView x = op.lora_a;
  x.dtype = op.product;
  std::vector<unsigned char> rounded(x.bytes());
  x.data = rounded.data();
  for (int64_t i = 0; i < x.elems(); ++i) {
    Store(x, i, LoadElement(op.lora_a.data, op.lora_a.dtype, i), false);
  }
  const std::vector<double> product = BaseProduct(x, op.w, Compute::kExact, context);
  const std::vector<double> a = Load(op.lora_a, context);
  const std::vector<double> b = Load(op.lora_b, context);
  std::vector<double> gram(static_cast<size_t>(r * r));
  for (int64_t i = 0; i < r * r; ++i) {
    Poll(context);
    gram[static_cast<size_t>(i)] =
        Dot(a.data() + i / r * op.lora_a.cols, a.data() + i % r * op.lora_a.cols, op.lora_a.cols);
  }
  for (int64_t n = 0; n < n_count; ++n) {
    const double* row = b.data() + n * r;
    double sum = 0;
    for (int64_t j = 0; j < r; ++j) {
      Poll(context);
      const double half = op.scaling * 0.5 * Dot(gram.data() + j * r, row, r);
      sum += row[j] * (product[static_cast<size_t>(j * n_count + n)] + half);
    }
    const double square =
        LoadElement(op.squares.data, op.squares.dtype, n) + 2.0 * op.scaling * sum;
    Store(op.norms, n, std::sqrt(square < 0 ? 0 : square), false);
  }
  return Status();
}

}  // namespace lowrank::cpu::reference
