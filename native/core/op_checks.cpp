#include "native/core/op_checks.h"

#include <cmath>

namespace lowrank {
namespace {

bool Overlaps(const TensorView& a, const TensorView& b) {
  if (!a.present || !b.present || a.bytes() == 0 || b.bytes() == 0) return false;
  const char* a0 = static_cast<const char*>(a.data);
  const char* b0 = static_cast<const char*>(b.data);
  return a0 < b0 + b.bytes() && b0 < a0 + a.bytes();
}

}  // namespace

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
  if (w.rowwise && (w.format->bits != 8 || nested || w.cols % b != 0 || w.cols == 0)) {
    return Refuse(Code::kFormat, op, operand, "of 8-bit codes and whole blocks, being rowwise",
                  w.Describe());
  }
  return Status();
}

Status CheckWeight(const char* op, const WeightView& w, DType activations,
                   const char* activation_operand) {
  if (w.quantised()) return CheckQuant(op, "w", w.quant);
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(op, "w", w.dense, w.dense.rows, w.dense.cols));
  return CheckCompatible(op, "w", w.dense.dtype, activation_operand, activations);
}

Status CheckCompute(const char* op, Compute compute, const WeightView& w) {
  if (compute == Compute::kExact) return Status();
  if (compute != Compute::kInt8) {
    return Refuse(Code::kValue, op, "compute", "'exact' or 'int8'", "an unknown precision");
  }
  if (w.quantised() && w.quant.format->bits == 4) return Status();
  if (w.quantised() && w.quant.rowwise) {
    if (w.quant.cols <= kMostInt8RowDepth) return Status();
    return Refuse(Code::kUnsupported, op, "w",
                  "of K <= " + std::to_string(kMostInt8RowDepth) + " (compute is 'int8')",
                  "K = " + std::to_string(w.quant.cols));
  }
  return Refuse(
      Code::kUnsupported, op, "w", "nf4, fp4, int4 or rowwise int8 (compute is 'int8')",
      w.quantised() ? w.quant.format->name : std::string("dense ") + DTypeName(w.dense.dtype));
}

const char* ComputeSuffix(Compute compute) {
  return compute == Compute::kInt8 ? " compute int8" : "";
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

Status CheckFactor(const char* op, const char* operand, float value) {
  if (std::isfinite(value)) return Status();
  return Refuse(Code::kValue, op, operand, "finite", std::to_string(value));
}

Status CheckDistinct(const char* op, const char* out_name, const TensorView& out,
                     const char* in_name, const TensorView& in) {
  if (!Overlaps(out, in)) return Status();
  return Refuse(Code::kAlias, op, out_name, std::string("apart from ") + in_name,
                "overlapping memory");
}

}  // namespace lowrank
