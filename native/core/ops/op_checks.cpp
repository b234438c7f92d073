#include "native/core/ops/op_checks.h"

#include <algorithm>
#include <cmath>

namespace lowrank {

namespace {
/// The int8 kernels take a row of a rowwise weight in groups of this many elements.
constexpr int64_t kInt8RowUnit = 32;
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

namespace {

/// Whoever made the planes has checked their sizes (native/addon/weights/planes.cpp).
Status CheckPlanes(const char* op, const char* operand, const QuantView& w) {
  if (w.rows < 0 || w.cols < 0) {
    return Refuse(Code::kShape, op, operand, "of non-negative size", Shape(w.rows, w.cols));
  }
  if (w.codes == nullptr || w.codebook == nullptr) {
    return Refuse(Code::kFormat, op, operand, "complete", "a weight with parts missing");
  }
  return Status();
}

}  // namespace

Status CheckQuant(const char* op, const char* operand, const QuantView& w) {
  if (w.format == nullptr) {
    return Refuse(Code::kFormat, op, operand, "a known format", "an unknown one");
  }
  if (w.planar()) return CheckPlanes(op, operand, w);
  const int64_t b = w.blocksize;
  // A block of a rowwise weight must only end with its row, which kernels read eight at a time.
  const int64_t least = w.rowwise ? 8 : w.format->min_blocksize;
  if (b < least || b > w.format->max_blocksize || (b & (b - 1)) != 0) {
    return Refuse(Code::kFormat, op, "blocksize",
                  "a power of two from " + std::to_string(least) + " to " +
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
    return Refuse(Code::kFormat, op, operand, "of 8-bit codes and whole blocks (it is rowwise)",
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
    return Refuse(Code::kValue, op, "compute", "exact or int8", "an unknown precision");
  }
  if (w.quantised() && !w.quant.planar() && w.quant.format->bits == 4) return Status();
  if (w.quantised() && w.quant.rowwise) {
    if (w.quant.cols % kInt8RowUnit != 0) {
      return Refuse(
          Code::kUnsupported, op, "w",
          "of a K that is a multiple of " + std::to_string(kInt8RowUnit) + " (for compute int8)",
          "K = " + std::to_string(w.quant.cols));
    }
    if (w.quant.cols <= kMostInt8RowDepth) return Status();
    return Refuse(Code::kUnsupported, op, "w",
                  "of K <= " + std::to_string(kMostInt8RowDepth) + " (for compute int8)",
                  "K = " + std::to_string(w.quant.cols));
  }
  std::string known;
  for (const std::string& name : FormatNames(4)) known += (known.empty() ? "" : ", ") + name;
  return Refuse(
      Code::kUnsupported, op, "w", known + " or rowwise int8 (for compute int8)",
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

void Ranges::AddBytes(const char* name, const void* data, size_t bytes, bool output) {
  if (data == nullptr || bytes == 0) return;
  const auto begin = reinterpret_cast<uintptr_t>(data);
  ranges_.push_back({name, begin, begin + bytes, output});
}

Ranges& Ranges::Add(const char* name, const TensorView& view, bool output) {
  if (view.present) AddBytes(name, view.data, view.bytes(), output);
  return *this;
}

Ranges& Ranges::Add(const char* name, const QuantView& w, bool output) {
  if (w.format == nullptr) return *this;
  const auto blocks = static_cast<size_t>(w.blocks());
  const auto nested = static_cast<size_t>(w.nested_blocks());
  AddBytes(name, w.codes, w.code_bytes(), output);
  if (w.planar()) return *this;  // nothing writes its planes
  AddBytes(name, w.codebook, static_cast<size_t>(w.format->levels) * sizeof(float), false);
  AddBytes(name, w.absmax, blocks * sizeof(float), output);
  AddBytes(name, w.absmax_8bit, blocks, output);
  AddBytes(name, w.absmax_codebook, 256 * sizeof(float), false);
  AddBytes(name, w.nested_absmax, nested * sizeof(float), output);
  AddBytes(name, w.absmax_offset, sizeof(float), output);
  return *this;
}

Ranges& Ranges::In(const char* name, const FeatureMapView& map) {
  const auto outputs = static_cast<size_t>(map.outputs);
  AddBytes(name, map.begin, (outputs + 1) * sizeof(int32_t), false);
  AddBytes(name, map.index, static_cast<size_t>(map.entries) * sizeof(int32_t), false);
  return *this;
}

Ranges& Ranges::In(const char* name, const IndexView& indices) {
  AddBytes(name, indices.data, static_cast<size_t>(indices.count) * sizeof(int32_t), false);
  return *this;
}

Ranges& Ranges::Out(const char* name, const IndexOut& indices) {
  AddBytes(name, indices.data, static_cast<size_t>(indices.count) * sizeof(int32_t), true);
  return *this;
}

Status Ranges::CheckApart(const char* op) {
  std::sort(ranges_.begin(), ranges_.end(),
            [](const Range& a, const Range& b) { return a.begin < b.begin; });
  const Range* reaches = nullptr;         // the earlier range that extends furthest
  const Range* output_reaches = nullptr;  // the earlier output that extends furthest
  for (const Range& range : ranges_) {
    const Range* before = range.output ? reaches : output_reaches;
    if (before != nullptr && range.begin < before->end) {
      const Range& out = range.output ? range : *before;
      const Range& other = range.output ? *before : range;
      return Refuse(Code::kAlias, op, out.name, std::string("apart from ") + other.name,
                    "overlapping memory");
    }
    if (reaches == nullptr || range.end > reaches->end) reaches = &range;
    if (range.output && (output_reaches == nullptr || range.end > output_reaches->end)) {
      output_reaches = &range;
    }
  }
  return Status();
}

}  // namespace lowrank
