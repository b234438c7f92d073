/// The device "reference": every op as its formula, in plain loops with double accumulation,
/// rounded once at the end.
#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "native/cpu/reference/reference_ops.h"
#include "native/host_device/random.h"

namespace lowrank::cpu {
namespace reference {
namespace {

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

/// Codes and absmax of `values` in blocks, by the rule of FormatRow; absmax is appended. `first` is
/// the index of values[0] in the whole weight.
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

/// absmax to 8 bits: the mean is subtracted, and the rest goes through the 8-bit map.
Status QuantizeAbsmax(std::vector<float> absmax, const QuantView& out, const RunContext& context) {
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

/// LLM.int8's rule (native/cpu/kernels/decode/quantize.h).
Status QuantizeRowwise(const QuantizeOp& op, const RunContext& context) {
  const QuantView& out = op.out;
  std::vector<float> row(static_cast<size_t>(out.cols));
  for (int64_t n = 0; n < out.rows; ++n) {
    Poll(context);
    float largest = 0;
    for (int64_t k = 0; k < out.cols; ++k) {
      float& value = row[static_cast<size_t>(k)];
      uint16_t half;
      StoreElement(&half, DType::kF16, 0, LoadElement(op.w.data, op.w.dtype, n * out.cols + k));
      value = LoadElement(&half, DType::kF16, 0);
      if (!std::isfinite(value)) {
        return Refuse(Code::kNonFinite, QuantizeOp::kName, "w",
                      "finite in f16 (the weight is rowwise)",
                      "Inf or NaN at element " + std::to_string(n * out.cols + k));
      }
      largest = std::max(largest, std::fabs(value));
    }
    const int64_t blocks = out.cols / out.blocksize;
    std::fill_n(out.absmax + n * blocks, blocks, largest);
    const float scale = largest == 0 ? 0.0f : 127.0f / largest;
    for (int64_t k = 0; k < out.cols; ++k) {
      const float code = std::nearbyint(row[static_cast<size_t>(k)] * scale);
      out.codes[n * out.cols + k] = static_cast<uint8_t>(static_cast<int>(code) + 128);
    }
  }
  return Status();
}

Status Quantize(const QuantizeOp& op, const RunContext& context) {
  const QuantView& out = op.out;
  if (out.rowwise) return QuantizeRowwise(op, context);
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
  if (out.double_quant()) return QuantizeAbsmax(std::move(absmax), out, context);
  for (size_t b = 0; b < absmax.size(); ++b) out.absmax[b] = absmax[b];
  return Status();
}

Status QuantizeScales(const QuantizeScalesOp& op, const RunContext& context) {
  std::vector<float> absmax(static_cast<size_t>(op.absmax.elems()));
  ForEach(context, op.absmax.elems(), [&](int64_t b) {
    absmax[static_cast<size_t>(b)] = LoadElement(op.absmax.data, DType::kF32, b);
  });
  return QuantizeAbsmax(std::move(absmax), op.out, context);
}

Status Dequantize(const DequantizeOp& op, const RunContext& context) {
  ForEach(context, op.y.elems(), [&](int64_t i) { Store(op.y, i, op.w.Value(i), false); });
  return Status();
}

Status Cast(const CastOp& op, const RunContext& context) {
  if (op.src.dtype == op.dst.dtype) {
    // Not through double, which turns a signalling NaN into a quiet one.
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
  const bool keep = op.kind == RandomOp::Kind::kKeep;
  const uint32_t threshold = keep ? DropoutThreshold(op.mean) : 0;
  const uint64_t seed = op.SeedNow();
  ForEach(context, op.y.elems(), [&](int64_t i) {
    if (keep) {
      Store(op.y, i, DropoutKeeps(seed, static_cast<uint64_t>(i), threshold) ? 1 : 0, false);
      return;
    }
    double group[4];
    RandomGroup(normal, seed, static_cast<uint64_t>(i >> 2), op.mean, op.scale, group);
    Store(op.y, i, group[i & 3], false);
  });
  return Status();
}

Status ForwardPart(const LoraForwardOp& part, const RunContext& context) {
  return part.lora_a.present ? LoraForward(part, context) : Matmul(BaseOf(part), context);
}

Status LoraForwardMany(const LoraForwardManyOp& op, const RunContext& context) {
  for (int64_t i = 0; i < op.count; ++i) {
    LOWRANK_RETURN_IF_ERROR(ForwardPart(op.parts[i], context));
  }
  return Status();
}

Status LoraForwardSwiglu(const LoraForwardSwigluOp& op, const RunContext& context) {
  std::vector<uint8_t> memory[2];
  LoraForwardOp parts[] = {op.gate, op.up};
  for (int i = 0; i < 2; ++i) {
    if (!parts[i].y.present) {
      memory[i].resize(op.y.bytes());
      parts[i].y = op.y;
      parts[i].y.data = memory[i].data();
    }
    LOWRANK_RETURN_IF_ERROR(ForwardPart(parts[i], context));
  }
  return GatedActivation({parts[0].y, parts[1].y, op.y}, context);
}

}  // namespace
}  // namespace reference

const KernelTable kReferenceKernels = {"reference",
#define LOWRANK_REFERENCE(Name, member) reference::Run<Name##Op, reference::Name>,
                                       LOWRANK_FOR_EACH_OP(LOWRANK_REFERENCE)
#undef LOWRANK_REFERENCE
};

}  // namespace lowrank::cpu
