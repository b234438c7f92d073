/// Helpers for the formulas of the device "reference": operands as doubles, the gate, and products
/// in plain loops. It shares no arithmetic with the SIMD kernels except the decoding of a code
/// (QuantView) and the generator, so that the two check each other.
#pragma once

#include <algorithm>
#include <vector>

#include "native/cpu/reference/reference_int8.h"
#include "native/host_device/philox.h"

namespace lowrank::cpu::reference {

inline double RoundTo(DType dtype, float value) {
  switch (dtype) {
    case DType::kBF16:
      return ToFloat(FromFloat<BF16>(value));
    case DType::kF16:
      return ToFloat(FromFloat<F16>(value));
    default:
      return value;
  }
}

/// A matrix as doubles, [rows · cols].
inline std::vector<double> Load(const TensorView& view, const RunContext& context) {
  std::vector<double> values(static_cast<size_t>(view.elems()));
  ForEach(context, view.elems(), [&](int64_t i) {
    values[static_cast<size_t>(i)] = LoadElement(view.data, view.dtype, i);
  });
  return values;
}

/// Row n of the base weight. A quantised weight is decoded in f32 and rounded once to the dtype of
/// the activations, as in PEFT and bitsandbytes; a dense one is used unchanged.
inline void LoadWeightRow(const WeightView& w, DType activations, int64_t n,
                          std::vector<double>* row) {
  const int64_t k_count = w.cols();
  for (int64_t k = 0; k < k_count; ++k) {
    const int64_t i = n * k_count + k;
    (*row)[static_cast<size_t>(k)] = w.quantised() ? RoundTo(activations, w.quant.Value(i))
                                                   : LoadElement(w.dense.data, w.dense.dtype, i);
  }
}

/// gate(m, k): the factor of the adapter's view of x.
class Gate {
 public:
  explicit Gate(const DropoutSpec& dropout)
      : dropout_(dropout),
        threshold_(DropoutThreshold(dropout.p)),
        kept_scale_(static_cast<float>(1.0 / (1.0 - dropout.p))) {}

  double operator()(int64_t index) const {
    if (!dropout_.active()) return 1;
    const bool kept = dropout_.mask.present
                          ? LoadElement(dropout_.mask.data, dropout_.mask.dtype, index) != 0
                          : DropoutKeeps(dropout_.seed, static_cast<uint64_t>(index), threshold_);
    return kept ? kept_scale_ : 0;
  }

 private:
  const DropoutSpec& dropout_;
  uint32_t threshold_;
  float kept_scale_;
};

/// gate ⊙ x. A dropped element is zero whatever it held.
inline std::vector<double> Gated(const TensorView& x, const DropoutSpec& dropout,
                                 const RunContext& context) {
  std::vector<double> values = Load(x, context);
  const Gate gate(dropout);
  ForEach(context, x.elems(), [&](int64_t i) {
    double& value = values[static_cast<size_t>(i)];
    const double factor = gate(i);
    value = factor == 0 ? 0 : value * factor;
  });
  return values;
}

/// Stores `value`, plus the old value if `accumulate`.
inline void Store(const TensorView& out, int64_t index, double value, bool accumulate) {
  if (accumulate) value += LoadElement(out.data, out.dtype, index);
  StoreElement(out.data, out.dtype, index, value);
}

inline double Dot(const double* a, const double* b, int64_t count) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += a[i] * b[i];
  return sum;
}

/// acc[m, n] = x · dequant(w)ᵀ, [M · N]
inline std::vector<double> BaseProduct(const TensorView& x, const WeightView& w, Compute compute,
                                       const RunContext& context) {
  if (compute == Compute::kInt8) return Int8Product(x, w.quant, context);
  const std::vector<double> x_values = Load(x, context);
  const int64_t n_count = w.rows();
  std::vector<double> acc(static_cast<size_t>(x.rows * n_count));
  std::vector<double> row(static_cast<size_t>(w.cols()));
  for (int64_t n = 0; n < n_count; ++n) {
    LoadWeightRow(w, x.dtype, n, &row);
    for (int64_t m = 0; m < x.rows; ++m) {
      Poll(context);
      acc[static_cast<size_t>(m * n_count + n)] =
          Dot(x_values.data() + m * x.cols, row.data(), x.cols);
    }
  }
  return acc;
}

/// acc[m, k] = dy · dequant(w), [M · K]
inline std::vector<double> BaseInputGrad(const TensorView& dy, const WeightView& w,
                                         const RunContext& context) {
  const std::vector<double> dy_values = Load(dy, context);
  const int64_t k_count = w.cols();
  std::vector<double> acc(static_cast<size_t>(dy.rows * k_count));
  std::vector<double> row(static_cast<size_t>(k_count));
  for (int64_t n = 0; n < w.rows(); ++n) {
    LoadWeightRow(w, dy.dtype, n, &row);
    for (int64_t m = 0; m < dy.rows; ++m) {
      Poll(context);
      const double factor = dy_values[static_cast<size_t>(m * dy.cols + n)];
      for (int64_t k = 0; k < k_count; ++k) {
        acc[static_cast<size_t>(m * k_count + k)] += factor * row[static_cast<size_t>(k)];
      }
    }
  }
  return acc;
}

/// out[j, c] (+)= Σₘ a[m, j] · b[m, c]
inline void StoreOuter(const std::vector<double>& a, int64_t a_cols, const std::vector<double>& b,
                       int64_t b_cols, int64_t m_count, const TensorView& out, bool accumulate,
                       const RunContext& context) {
  std::vector<double> sums(static_cast<size_t>(a_cols * b_cols), 0);
  for (int64_t m = 0; m < m_count; ++m) {
    for (int64_t j = 0; j < a_cols; ++j) {
      Poll(context);
      const double factor = a[static_cast<size_t>(m * a_cols + j)];
      for (int64_t c = 0; c < b_cols; ++c) {
        sums[static_cast<size_t>(j * b_cols + c)] +=
            factor * b[static_cast<size_t>(m * b_cols + c)];
      }
    }
  }
  ForEach(context, a_cols * b_cols,
          [&](int64_t i) { Store(out, i, sums[static_cast<size_t>(i)], accumulate); });
}

/// dh = scaling · dy · lora_b, [M · r]; dy as its values
inline std::vector<double> AdapterGrad(const std::vector<double>& dy, int64_t m_count,
                                       const TensorView& lora_b_view, double scaling,
                                       const RunContext& context) {
  const int64_t n_count = lora_b_view.rows;
  const int64_t r = lora_b_view.cols;
  const std::vector<double> lora_b = Load(lora_b_view, context);
  std::vector<double> dh(static_cast<size_t>(m_count * r), 0);
  for (int64_t m = 0; m < m_count; ++m) {
    ForEach(context, n_count, [&](int64_t n) {
      const double factor = scaling * dy[static_cast<size_t>(m * n_count + n)];
      for (int64_t j = 0; j < r; ++j) {
        dh[static_cast<size_t>(m * r + j)] += factor * lora_b[static_cast<size_t>(n * r + j)];
      }
    });
  }
  return dh;
}

/// The kernel; a Stop becomes kCancelled.
template <typename Op, Status (*kKernel)(const Op&, const RunContext&)>
Status Run(const Op& op, const RunContext& context) {
  try {
    return kKernel(op, context);
  } catch (const Stop&) {
    return Status(Code::kCancelled, "reference: the environment is closing");
  }
}

}  // namespace lowrank::cpu::reference
