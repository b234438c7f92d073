/// The device "reference": every op as its formula, in plain loops with double accumulation and one
/// rounding at the end. It shares no arithmetic with the SIMD kernels, only the decode of a code
/// (QuantView) and the generator, so that the two check each other.
#include <algorithm>
#include <cmath>
#include <vector>

#include "native/core/philox.h"
#include "native/core/random.h"
#include "native/cpu/reference_int8.h"

namespace lowrank::cpu {
namespace {

using reference::ForEach;
using reference::Poll;
using reference::Stop;

double RoundTo(DType dtype, float value) {
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
std::vector<double> Load(const TensorView& view, const RunContext& context) {
  std::vector<double> values(static_cast<size_t>(view.elems()));
  ForEach(context, view.elems(), [&](int64_t i) {
    values[static_cast<size_t>(i)] = LoadElement(view.data, view.dtype, i);
  });
  return values;
}

/// Row n of the base weight. A quantised weight is decoded in f32 and rounded once to the dtype of
/// the activations, as the peers do; a dense one is used as it is.
void LoadWeightRow(const WeightView& w, DType activations, int64_t n, std::vector<double>* row) {
  const int64_t k_count = w.cols();
  for (int64_t k = 0; k < k_count; ++k) {
    const int64_t i = n * k_count + k;
    (*row)[static_cast<size_t>(k)] = w.quantised() ? RoundTo(activations, w.quant.Value(i))
                                                   : LoadElement(w.dense.data, w.dense.dtype, i);
  }
}

/// gate(m, k): what the adapter's view of x is multiplied by.
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

/// gate ⊙ x; a dropped element is zero whatever it held.
std::vector<double> Gated(const TensorView& x, const DropoutSpec& dropout,
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

/// Stores `value`, added to what is there where `accumulate` asks for it.
void Store(const TensorView& out, int64_t index, double value, bool accumulate) {
  if (accumulate) value += LoadElement(out.data, out.dtype, index);
  StoreElement(out.data, out.dtype, index, value);
}

double Dot(const double* a, const double* b, int64_t count) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += a[i] * b[i];
  return sum;
}

/// acc[m, n] = x · dequant(w)ᵀ, [M · N]
std::vector<double> BaseProduct(const TensorView& x, const WeightView& w, Compute compute,
                                const RunContext& context) {
  if (compute == Compute::kInt8) return reference::Int8Product(x, w.quant, context);
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
std::vector<double> BaseInputGrad(const TensorView& dy, const WeightView& w,
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

Status Matmul(const MatmulOp& op, const RunContext& context) {
  const std::vector<double> acc = BaseProduct(op.x, op.w, op.compute, context);
  ForEach(context, op.y.elems(), [&](int64_t i) {
    double value = acc[static_cast<size_t>(i)];
    if (op.bias.present) value += LoadElement(op.bias.data, op.bias.dtype, i % op.y.cols);
    Store(op.y, i, value, false);
  });
  return Status();
}

Status MatmulInputGrad(const MatmulInputGradOp& op, const RunContext& context) {
  const std::vector<double> acc = BaseInputGrad(op.dy, op.w, context);
  ForEach(context, op.dx.elems(),
          [&](int64_t i) { Store(op.dx, i, acc[static_cast<size_t>(i)], false); });
  return Status();
}

Status LoraForward(const LoraForwardOp& op, const RunContext& context) {
  const int64_t m_count = op.x.rows;
  const int64_t n_count = op.y.cols;
  const int64_t k_count = op.x.cols;
  const int64_t r = op.lora_a.rows;
  const std::vector<double> acc = BaseProduct(op.x, op.w, op.compute, context);
  const std::vector<double> gated = Gated(op.x, op.dropout, context);
  const std::vector<double> lora_a = Load(op.lora_a, context);
  const std::vector<double> lora_b = Load(op.lora_b, context);
  std::vector<double> h(static_cast<size_t>(r));
  for (int64_t m = 0; m < m_count; ++m) {
    for (int64_t j = 0; j < r; ++j) {
      Poll(context);
      const double value = Dot(gated.data() + m * k_count, lora_a.data() + j * k_count, k_count);
      h[static_cast<size_t>(j)] = value;
      Store(op.h, m * r + j, value, false);
    }
    ForEach(context, n_count, [&](int64_t n) {
      double adapter = Dot(h.data(), lora_b.data() + n * r, r);
      if (op.lora_bias.present) adapter += LoadElement(op.lora_bias.data, op.lora_bias.dtype, n);
      double value = acc[static_cast<size_t>(m * n_count + n)] + op.scaling * adapter;
      if (op.bias.present) value += LoadElement(op.bias.data, op.bias.dtype, n);
      Store(op.y, m * n_count + n, value, false);
    });
  }
  return Status();
}

/// dh = scaling · dy · lora_b, [M · r]
std::vector<double> AdapterGrad(const LoraBackwardOp& op, const std::vector<double>& dy,
                                const RunContext& context) {
  const int64_t n_count = op.dy.cols;
  const int64_t r = op.lora_b.cols;
  const std::vector<double> lora_b = Load(op.lora_b, context);
  std::vector<double> dh(static_cast<size_t>(op.dy.rows * r), 0);
  for (int64_t m = 0; m < op.dy.rows; ++m) {
    ForEach(context, n_count, [&](int64_t n) {
      const double factor = op.scaling * dy[static_cast<size_t>(m * n_count + n)];
      for (int64_t j = 0; j < r; ++j) {
        dh[static_cast<size_t>(m * r + j)] += factor * lora_b[static_cast<size_t>(n * r + j)];
      }
    });
  }
  return dh;
}

/// out[j, c] (+)= Σₘ a[m, j] · b[m, c]
void StoreOuter(const std::vector<double>& a, int64_t a_cols, const std::vector<double>& b,
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

Status LoraBackward(const LoraBackwardOp& op, const RunContext& context) {
  const int64_t m_count = op.dy.rows;
  const int64_t n_count = op.dy.cols;
  const int64_t k_count = op.lora_a.cols;
  const int64_t r = op.lora_a.rows;
  const std::vector<double> dy = Load(op.dy, context);
  std::vector<double> dh;
  if (op.dx.present || op.d_lora_a.present) dh = AdapterGrad(op, dy, context);

  if (op.dx.present) {
    const std::vector<double> acc = BaseInputGrad(op.dy, op.w, context);
    const std::vector<double> lora_a = Load(op.lora_a, context);
    const Gate gate(op.dropout);
    for (int64_t m = 0; m < m_count; ++m) {
      ForEach(context, k_count, [&](int64_t k) {
        double adapter = 0;
        for (int64_t j = 0; j < r; ++j) {
          adapter +=
              dh[static_cast<size_t>(m * r + j)] * lora_a[static_cast<size_t>(j * k_count + k)];
        }
        const int64_t i = m * k_count + k;
        const double factor = gate(i);
        const double gated = factor == 0 ? 0 : factor * adapter;
        Store(op.dx, i, acc[static_cast<size_t>(i)] + gated, op.accumulate_dx);
      });
    }
  }
  if (op.d_lora_a.present) {
    StoreOuter(dh, r, Gated(op.x, op.dropout, context), k_count, m_count, op.d_lora_a,
               op.accumulate_d_lora_a, context);
  }
  if (op.d_lora_b.present) {
    std::vector<double> scaled = Load(op.h, context);
    for (double& value : scaled) value *= op.scaling;
    StoreOuter(dy, n_count, scaled, r, m_count, op.d_lora_b, op.accumulate_d_lora_b, context);
  }
  for (int64_t n = 0; n < n_count && (op.d_bias.present || op.d_lora_bias.present); ++n) {
    Poll(context);
    double sum = 0;
    for (int64_t m = 0; m < m_count; ++m) sum += dy[static_cast<size_t>(m * n_count + n)];
    if (op.d_bias.present) Store(op.d_bias, n, sum, op.accumulate_d_bias);
    if (op.d_lora_bias.present) {
      Store(op.d_lora_bias, n, op.scaling * sum, op.accumulate_d_lora_bias);
    }
  }
  return Status();
}

/// Codes and absmax of `values` in blocks, under the rule of FormatRow; absmax is appended. `first`
/// is the index of values[0] in the whole.
Status QuantizeBlocks(const std::vector<float>& values, int64_t first, const FormatRow& format,
                      int64_t blocksize, const RunContext& context, std::vector<uint8_t>* codes,
                      std::vector<float>* absmax) {
  const int64_t count = static_cast<int64_t>(values.size());
  codes->assign(values.size(), format.zero_code);
  for (int64_t begin = 0; begin < count; begin += blocksize) {
    Poll(context);
    const int64_t end = std::min(begin + blocksize, count);
    float largest = 0;
    for (int64_t i = begin; i < end; ++i) {
      const float value = values[static_cast<size_t>(i)];
      if (!std::isfinite(value)) {
        return Refuse(Code::kNonFinite, QuantizeOp::kName, "w[" + std::to_string(first + i) + "]",
                      "finite", std::to_string(value));
      }
      largest = std::max(largest, std::fabs(value));
    }
    absmax->push_back(largest);
    const float inverse = 1.0f / largest;
    if (std::isinf(inverse)) continue;  // zeros, or absmax < 2^-128: codes stay zero_code
    for (int64_t i = begin; i < end; ++i) {
      (*codes)[static_cast<size_t>(i)] = format.Encode(values[static_cast<size_t>(i)] * inverse);
    }
  }
  return Status();
}

Status Quantize(const QuantizeOp& op, const RunContext& context) {
  const QuantView& out = op.out;
  // In pieces, so that no allocation takes long; a multiple of every blocksize.
  constexpr int64_t kPiece = int64_t{1} << 20;
  std::vector<float> absmax;
  for (int64_t begin = 0; begin < op.w.elems(); begin += kPiece) {
    std::vector<float> values(static_cast<size_t>(std::min(kPiece, op.w.elems() - begin)));
    ForEach(context, static_cast<int64_t>(values.size()), [&](int64_t i) {
      values[static_cast<size_t>(i)] = LoadElement(op.w.data, op.w.dtype, begin + i);
    });
    std::vector<uint8_t> codes;
    LOWRANK_RETURN_IF_ERROR(
        QuantizeBlocks(values, begin, *out.format, out.blocksize, context, &codes, &absmax));
    const int64_t count = static_cast<int64_t>(codes.size());
    if (out.format->bits == 8) {
      for (int64_t i = 0; i < count; ++i) out.codes[begin + i] = codes[static_cast<size_t>(i)];
      continue;
    }
    for (int64_t i = 0; i < count; i += 2) {
      const uint8_t low = i + 1 < count ? codes[static_cast<size_t>(i + 1)] : out.format->zero_code;
      out.codes[(begin + i) / 2] = static_cast<uint8_t>(codes[static_cast<size_t>(i)] << 4 | low);
    }
  }
  if (!out.double_quant()) {
    for (size_t b = 0; b < absmax.size(); ++b) out.absmax[b] = absmax[b];
    return Status();
  }
  double sum = 0;
  for (const float value : absmax) sum += value;
  const float offset =
      absmax.empty() ? 0 : static_cast<float>(sum / static_cast<double>(absmax.size()));
  *out.absmax_offset = offset;
  for (float& value : absmax) value -= offset;
  std::vector<uint8_t> absmax_8bit;
  std::vector<float> nested;
  LOWRANK_RETURN_IF_ERROR(QuantizeBlocks(absmax, 0, *FindFormat("int8"), out.nested_blocksize,
                                         context, &absmax_8bit, &nested));
  for (size_t b = 0; b < absmax_8bit.size(); ++b) out.absmax_8bit[b] = absmax_8bit[b];
  for (size_t b = 0; b < nested.size(); ++b) out.nested_absmax[b] = nested[b];
  return Status();
}

Status Dequantize(const DequantizeOp& op, const RunContext& context) {
  ForEach(context, op.y.elems(), [&](int64_t i) { Store(op.y, i, op.w.Value(i), false); });
  return Status();
}

Status Cast(const CastOp& op, const RunContext& context) {
  if (op.src.dtype == op.dst.dtype) {
    // Not by way of double, which turns a signalling NaN into a quiet one.
    const int64_t bytes = static_cast<int64_t>(op.src.bytes());
    ForEach(context, bytes, [&](int64_t i) {
      static_cast<uint8_t*>(op.dst.data)[i] = static_cast<const uint8_t*>(op.src.data)[i];
    });
    return Status();
  }
  ForEach(context, op.dst.elems(),
          [&](int64_t i) { Store(op.dst, i, LoadElement(op.src.data, op.src.dtype, i), false); });
  return Status();
}

Status Random(const RandomOp& op, const RunContext& context) {
  const bool normal = op.kind == RandomOp::Kind::kNormal;
  ForEach(context, op.y.elems(), [&](int64_t i) {
    double group[4];
    RandomGroup(normal, op.seed, static_cast<uint64_t>(i >> 2), op.mean, op.scale, group);
    Store(op.y, i, group[i & 3], false);
  });
  return Status();
}

/// The kernel, with a Stop on its way out as kCancelled.
template <typename Op, Status (*kKernel)(const Op&, const RunContext&)>
Status Run(const Op& op, const RunContext& context) {
  try {
    return kKernel(op, context);
  } catch (const Stop&) {
    return Status(Code::kCancelled, "reference: the environment is closing");
  }
}

}  // namespace

const KernelTable kReferenceKernels = {
    "reference",
    Run<QuantizeOp, Quantize>,
    Run<DequantizeOp, Dequantize>,
    Run<MatmulOp, Matmul>,
    Run<MatmulInputGradOp, MatmulInputGrad>,
    Run<LoraForwardOp, LoraForward>,
    Run<LoraBackwardOp, LoraBackward>,
    Run<CastOp, Cast>,
    Run<RandomOp, Random>,
};

}  // namespace lowrank::cpu
