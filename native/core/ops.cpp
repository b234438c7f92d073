#include "native/core/ops.h"

#include <cmath>

namespace lowrank {
namespace {

std::string Shape(int64_t rows, int64_t cols) {
  return "[" + std::to_string(rows) + ", " + std::to_string(cols) + "]";
}

Status CheckMatrix(const char* op, const char* operand, const TensorView& view, int64_t rows,
                   int64_t cols) {
  if (!view.present) {
    return Refuse(Code::kShape, op, operand, "a tensor " + Shape(rows, cols), "none");
  }
  if (view.rows != rows || view.cols != cols) {
    return Refuse(Code::kShape, op, operand, Shape(rows, cols), Shape(view.rows, view.cols));
  }
  if (view.data == nullptr && view.elems() != 0) {
    return Refuse(Code::kDisposed, op, operand, "allocated", "no memory");
  }
  return Status();
}

Status CheckOptional(const char* op, const char* operand, const TensorView& view, int64_t rows,
                     int64_t cols) {
  return view.present ? CheckMatrix(op, operand, view, rows, cols) : Status();
}

Status CheckDType(const char* op, const char* operand, const TensorView& view, DType dtype) {
  if (view.present && view.dtype != dtype) {
    return Refuse(Code::kDtype, op, operand, DTypeName(dtype), DTypeName(view.dtype));
  }
  return Status();
}

/// f32 goes with everything; the two 16-bit types do not mix.
Status CheckCompatible(const char* op, const char* operand, DType dtype, const char* other_operand,
                       DType other) {
  if (dtype == other || dtype == DType::kF32 || other == DType::kF32) return Status();
  return Refuse(
      Code::kDtype, op, operand,
      std::string(DTypeName(other)) + " or f32 (" + other_operand + " is " + DTypeName(other) + ")",
      DTypeName(dtype));
}

Status CheckQuant(const char* op, const char* operand, const QuantView& w) {
  if (w.format == nullptr) {
    return Refuse(Code::kFormat, op, operand, "a known format", "an unknown one");
  }
  const int64_t b = w.blocksize;
  if (b < w.format->min_blocksize || b > w.format->max_blocksize || (b & (b - 1)) != 0) {
    return Refuse(Code::kFormat, op, "blocksize",
                  "a power of two from " + std::to_string(w.format->min_blocksize) + " to " +
                      std::to_string(w.format->max_blocksize),
                  std::to_string(b));
  }
  if (w.rows < 0 || w.cols < 0) {
    return Refuse(Code::kShape, op, operand, "of non-negative size", Shape(w.rows, w.cols));
  }
  const bool single = w.absmax != nullptr;
  const bool nested = w.absmax_8bit != nullptr && w.absmax_codebook != nullptr &&
                      w.nested_absmax != nullptr && w.absmax_offset != nullptr &&
                      w.nested_blocksize > 0;
  if (w.elems() != 0 && (w.codes == nullptr || w.codebook == nullptr || single == nested)) {
    return Refuse(Code::kFormat, op, operand, "complete", "a weight with parts missing");
  }
  return Status();
}

Status CheckWeight(const char* op, const WeightView& w, DType activations,
                   const char* activation_operand) {
  if (w.quantised()) return CheckQuant(op, "w", w.quant);
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(op, "w", w.dense, w.dense.rows, w.dense.cols));
  return CheckCompatible(op, "w", w.dense.dtype, activation_operand, activations);
}

/// int8 is for weights of 16 levels: that is what a table of 16 codes can stand for.
Status CheckCompute(const char* op, Compute compute, const WeightView& w) {
  if (compute == Compute::kExact) return Status();
  if (compute != Compute::kInt8) {
    return Refuse(Code::kValue, op, "compute", "'exact' or 'int8'", "an unknown precision");
  }
  if (w.quantised() && w.quant.format->bits == 4) return Status();
  return Refuse(
      Code::kUnsupported, op, "w", "nf4 or fp4 (compute is 'int8')",
      w.quantised() ? w.quant.format->name : std::string("dense ") + DTypeName(w.dense.dtype));
}

Status CheckInner(const char* op, const char* operand, const char* dim, int64_t expected,
                  int64_t actual, const std::string& actual_shape) {
  if (expected == actual) return Status();
  return Refuse(Code::kShape, op, operand,
                std::string("of ") + dim + " = " + std::to_string(expected) + " (w's " + dim + ")",
                actual_shape);
}

Status CheckDropout(const char* op, const DropoutSpec& dropout, int64_t rows, int64_t cols) {
  if (!(dropout.p >= 0 && dropout.p < 1)) {
    return Refuse(Code::kValue, op, "dropout", "in [0, 1)", std::to_string(dropout.p));
  }
  return CheckOptional(op, "dropoutMask", dropout.mask, rows, cols);
}

Status CheckScaling(const char* op, float scaling) {
  if (std::isfinite(scaling)) return Status();
  return Refuse(Code::kValue, op, "scaling", "finite", std::to_string(scaling));
}

const char* ComputeSuffix(Compute compute) {
  return compute == Compute::kInt8 ? " compute int8" : "";
}

bool Overlaps(const TensorView& a, const TensorView& b) {
  if (!a.present || !b.present || a.bytes() == 0 || b.bytes() == 0) return false;
  const char* a0 = static_cast<const char*>(a.data);
  const char* b0 = static_cast<const char*>(b.data);
  return a0 < b0 + b.bytes() && b0 < a0 + a.bytes();
}

Status CheckDistinct(const char* op, const char* out_name, const TensorView& out,
                     const char* in_name, const TensorView& in) {
  if (!Overlaps(out, in)) return Status();
  return Refuse(Code::kAlias, op, out_name, std::string("apart from ") + in_name,
                "overlapping memory");
}

/// A gradient may lie over no operand and over no other gradient: they are all written in one pass.
Status CheckOutputsApart(const LoraBackwardOp& op) {
  struct Named {
    const char* name;
    const TensorView* view;
  };
  const Named outputs[] = {{"dx", &op.dx},
                           {"dLoraA", &op.d_lora_a},
                           {"dLoraB", &op.d_lora_b},
                           {"dBias", &op.d_bias},
                           {"dLoraBias", &op.d_lora_bias}};
  const Named inputs[] = {{"dy", &op.dy},
                          {"x", &op.x},
                          {"w", &op.w.dense},
                          {"loraA", &op.lora_a},
                          {"loraB", &op.lora_b},
                          {"h", &op.h},
                          {"dropoutMask", &op.dropout.mask}};
  for (const Named& out : outputs) {
    for (const Named& in : inputs) {
      LOWRANK_RETURN_IF_ERROR(CheckDistinct(op.kName, out.name, *out.view, in.name, *in.view));
    }
    for (const Named* other = outputs; other->view != out.view; ++other) {
      LOWRANK_RETURN_IF_ERROR(
          CheckDistinct(op.kName, out.name, *out.view, other->name, *other->view));
    }
  }
  return Status();
}

}  // namespace

Status QuantizeOp::Check() const {
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "w", w, w.rows, w.cols));
  LOWRANK_RETURN_IF_ERROR(CheckQuant(kName, "out", out));
  if (out.rows != w.rows || out.cols != w.cols) {
    return Refuse(Code::kShape, kName, "out", Shape(w.rows, w.cols), Shape(out.rows, out.cols));
  }
  return Status();
}
std::string QuantizeOp::Describe() const {
  return std::string(kName) + " w " + w.Describe() + " -> " + out.Describe();
}

Status DequantizeOp::Check() const {
  LOWRANK_RETURN_IF_ERROR(CheckQuant(kName, "w", w));
  return CheckMatrix(kName, "y", y, w.rows, w.cols);
}
std::string DequantizeOp::Describe() const {
  return std::string(kName) + " w " + w.Describe() + " -> " + y.Describe();
}

Status MatmulOp::Check() const {
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "x", x, x.rows, x.cols));
  LOWRANK_RETURN_IF_ERROR(CheckWeight(kName, w, x.dtype, "x"));
  LOWRANK_RETURN_IF_ERROR(CheckCompute(kName, compute, w));
  LOWRANK_RETURN_IF_ERROR(CheckInner(kName, "x", "K", w.cols(), x.cols, Shape(x.rows, x.cols)));
  LOWRANK_RETURN_IF_ERROR(CheckOptional(kName, "bias", bias, 1, w.rows()));
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "y", y, x.rows, w.rows()));
  LOWRANK_RETURN_IF_ERROR(CheckDType(kName, "y", y, x.dtype));
  return CheckDistinct(kName, "y", y, "x", x);
}
std::string MatmulOp::Describe() const {
  return std::string(kName) + " x " + x.Describe() + " w " + w.Describe() + " bias " +
         bias.Describe() + ComputeSuffix(compute);
}

Status MatmulInputGradOp::Check() const {
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "dy", dy, dy.rows, dy.cols));
  LOWRANK_RETURN_IF_ERROR(CheckWeight(kName, w, dy.dtype, "dy"));
  LOWRANK_RETURN_IF_ERROR(CheckInner(kName, "dy", "N", w.rows(), dy.cols, Shape(dy.rows, dy.cols)));
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "dx", dx, dy.rows, w.cols()));
  LOWRANK_RETURN_IF_ERROR(CheckDType(kName, "dx", dx, dy.dtype));
  return CheckDistinct(kName, "dx", dx, "dy", dy);
}
std::string MatmulInputGradOp::Describe() const {
  return std::string(kName) + " dy " + dy.Describe() + " w " + w.Describe();
}

Status LoraForwardOp::Check() const {
  const int64_t m = x.rows;
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "x", x, m, x.cols));
  LOWRANK_RETURN_IF_ERROR(CheckWeight(kName, w, x.dtype, "x"));
  LOWRANK_RETURN_IF_ERROR(CheckCompute(kName, compute, w));
  LOWRANK_RETURN_IF_ERROR(CheckInner(kName, "x", "K", w.cols(), x.cols, Shape(m, x.cols)));
  const int64_t r = lora_a.rows;
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "loraA", lora_a, r, x.cols));
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "loraB", lora_b, w.rows(), r));
  LOWRANK_RETURN_IF_ERROR(CheckCompatible(kName, "loraA", lora_a.dtype, "x", x.dtype));
  LOWRANK_RETURN_IF_ERROR(CheckCompatible(kName, "loraB", lora_b.dtype, "x", x.dtype));
  LOWRANK_RETURN_IF_ERROR(CheckOptional(kName, "bias", bias, 1, w.rows()));
  LOWRANK_RETURN_IF_ERROR(CheckOptional(kName, "loraBias", lora_bias, 1, w.rows()));
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "h", h, m, r));
  LOWRANK_RETURN_IF_ERROR(CheckDType(kName, "h", h, DType::kF32));
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "y", y, m, w.rows()));
  LOWRANK_RETURN_IF_ERROR(CheckDType(kName, "y", y, x.dtype));
  LOWRANK_RETURN_IF_ERROR(CheckDropout(kName, dropout, m, x.cols));
  LOWRANK_RETURN_IF_ERROR(CheckDistinct(kName, "y", y, "x", x));
  return CheckScaling(kName, scaling);
}
std::string LoraForwardOp::Describe() const {
  return std::string(kName) + " x " + x.Describe() + " w " + w.Describe() + " r " +
         std::to_string(lora_a.rows) + " scaling " + std::to_string(scaling) + " dropout " +
         std::to_string(dropout.p) + ComputeSuffix(compute);
}

Status LoraBackwardOp::Check() const {
  const int64_t m = dy.rows;
  const int64_t n = dy.cols;
  const int64_t k = lora_a.cols;
  const int64_t r = lora_a.rows;
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "dy", dy, m, n));
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "loraA", lora_a, r, k));
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "loraB", lora_b, n, r));
  LOWRANK_RETURN_IF_ERROR(CheckCompatible(kName, "loraA", lora_a.dtype, "dy", dy.dtype));
  LOWRANK_RETURN_IF_ERROR(CheckCompatible(kName, "loraB", lora_b.dtype, "dy", dy.dtype));
  if (dx.present) {
    LOWRANK_RETURN_IF_ERROR(CheckWeight(kName, w, dy.dtype, "dy"));
    LOWRANK_RETURN_IF_ERROR(CheckInner(kName, "dy", "N", w.rows(), n, Shape(m, n)));
    LOWRANK_RETURN_IF_ERROR(CheckInner(kName, "loraA", "K", w.cols(), k, Shape(r, k)));
    LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "dx", dx, m, k));
    LOWRANK_RETURN_IF_ERROR(CheckDType(kName, "dx", dx, dy.dtype));
  }
  if (d_lora_a.present) {
    LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "x", x, m, k));
    LOWRANK_RETURN_IF_ERROR(CheckDType(kName, "x", x, dy.dtype));
    LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "dLoraA", d_lora_a, r, k));
  }
  if (d_lora_b.present) {
    LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "h", h, m, r));
    LOWRANK_RETURN_IF_ERROR(CheckDType(kName, "h", h, DType::kF32));
    LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "dLoraB", d_lora_b, n, r));
  }
  LOWRANK_RETURN_IF_ERROR(CheckOptional(kName, "dBias", d_bias, 1, n));
  LOWRANK_RETURN_IF_ERROR(CheckOptional(kName, "dLoraBias", d_lora_bias, 1, n));
  LOWRANK_RETURN_IF_ERROR(CheckDropout(kName, dropout, m, k));
  LOWRANK_RETURN_IF_ERROR(CheckOutputsApart(*this));
  return CheckScaling(kName, scaling);
}
std::string LoraBackwardOp::Describe() const {
  std::string needs;
  if (dx.present) needs += " dx";
  if (d_lora_a.present) needs += " dLoraA";
  if (d_lora_b.present) needs += " dLoraB";
  if (d_bias.present) needs += " dBias";
  return std::string(kName) + " dy " + dy.Describe() + " K " + std::to_string(lora_a.cols) + " r " +
         std::to_string(lora_a.rows) + " needs" + needs;
}

Status CastOp::Check() const {
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "src", src, src.rows, src.cols));
  return CheckMatrix(kName, "dst", dst, src.rows, src.cols);
}
std::string CastOp::Describe() const {
  return std::string(kName) + " " + src.Describe() + " -> " + DTypeName(dst.dtype);
}

Status RandomOp::Check() const {
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "y", y, y.rows, y.cols));
  if (!std::isfinite(mean)) {
    return Refuse(Code::kValue, kName, "mean", "finite", std::to_string(mean));
  }
  if (!std::isfinite(scale) || scale < 0) {
    return Refuse(Code::kValue, kName, "std", "finite and not negative", std::to_string(scale));
  }
  return Status();
}
std::string RandomOp::Describe() const {
  return std::string(kName) + (kind == Kind::kNormal ? " normal " : " uniform ") + y.Describe();
}

}  // namespace lowrank
