/// What the Check() of the descriptors share. Each refusal names the operand, what was expected and
/// what came.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "native/core/ops/ops.h"

namespace lowrank {

/// "[3, 4]"
std::string Shape(int64_t rows, int64_t cols);

/// A present operand of that shape, with memory behind it.
Status CheckMatrix(const char* op, const char* operand, const TensorView& view, int64_t rows,
                   int64_t cols);
/// The same where it is present.
Status CheckOptional(const char* op, const char* operand, const TensorView& view, int64_t rows,
                     int64_t cols);
Status CheckDType(const char* op, const char* operand, const TensorView& view, DType dtype);
/// f32 goes with everything; the two 16-bit types do not mix.
Status CheckCompatible(const char* op, const char* operand, DType dtype, const char* other_operand,
                       DType other);
Status CheckQuant(const char* op, const char* operand, const QuantView& w);
Status CheckWeight(const char* op, const WeightView& w, DType activations,
                   const char* activation_operand);
/// int8 is for weights of 16 levels, which a table of 16 codes can stand for, and for rowwise ones,
/// which are such codes.
Status CheckCompute(const char* op, Compute compute, const WeightView& w);
/// For Describe(): what is not exact.
const char* ComputeSuffix(Compute compute);
/// `actual` is the dimension of `operand` that meets w's `dim`.
Status CheckInner(const char* op, const char* operand, const char* dim, int64_t expected,
                  int64_t actual, const std::string& actual_shape);
Status CheckDropout(const char* op, const DropoutSpec& dropout, int64_t rows, int64_t cols);
/// A factor that is finite in f32.
Status CheckFactor(const char* op, const char* operand, float value);

/// What one call reads and writes. Addresses are compared and not storages: two may lie over the
/// same memory (Tensor.wrap).
class Ranges {
 public:
  Ranges() { ranges_.reserve(24); }

  Ranges& In(const char* name, const TensorView& view) { return Add(name, view, false); }
  Ranges& In(const char* name, const QuantView& w) { return Add(name, w, false); }
  Ranges& In(const char* name, const WeightView& w) {
    return w.quantised() ? In(name, w.quant) : In(name, w.dense);
  }
  Ranges& In(const char* name, const FeatureMapView& map);
  Ranges& In(const char* name, const IndexView& indices);
  Ranges& Out(const char* name, const TensorView& view) { return Add(name, view, true); }
  /// Its codes and scales; the tables are read.
  Ranges& Out(const char* name, const QuantView& w) { return Add(name, w, true); }

  /// No output lies over anything else: all are written in one pass. By order of address, since a
  /// batch may have many adapters.
  Status CheckApart(const char* op);

 private:
  struct Range {
    const char* name;
    uintptr_t begin;
    uintptr_t end;
    bool output;
  };

  Ranges& Add(const char* name, const TensorView& view, bool output);
  Ranges& Add(const char* name, const QuantView& w, bool output);
  void AddBytes(const char* name, const void* data, size_t bytes, bool output);

  std::vector<Range> ranges_;
};

}  // namespace lowrank
