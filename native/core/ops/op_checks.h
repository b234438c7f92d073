/// Checks that the descriptors' Check() functions share. Each error names the operand, and the
/// expected and the actual value.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "native/core/ops/ops.h"

namespace lowrank {

/// "[3, 4]"
std::string Shape(int64_t rows, int64_t cols);

/// Checks for a present operand of that shape, with memory behind it.
Status CheckMatrix(const char* op, const char* operand, const TensorView& view, int64_t rows,
                   int64_t cols);
/// The same, if it is present.
Status CheckOptional(const char* op, const char* operand, const TensorView& view, int64_t rows,
                     int64_t cols);
Status CheckDType(const char* op, const char* operand, const TensorView& view, DType dtype);
/// f32 mixes with everything; the two 16-bit types do not mix.
Status CheckCompatible(const char* op, const char* operand, DType dtype, const char* other_operand,
                       DType other);
Status CheckQuant(const char* op, const char* operand, const QuantView& w);
Status CheckWeight(const char* op, const WeightView& w, DType activations,
                   const char* activation_operand);
/// int8 supports weights with 16 levels, which a table of 16 codes can represent, and rowwise
/// weights, which consist of such codes.
Status CheckCompute(const char* op, Compute compute, const WeightView& w);
/// For Describe(): the precision, if it is not exact.
const char* ComputeSuffix(Compute compute);
/// `actual` is the dimension of `operand` that must match w's `dim`.
Status CheckInner(const char* op, const char* operand, const char* dim, int64_t expected,
                  int64_t actual, const std::string& actual_shape);
/// Checks each index of a map in host memory, because kernels read at every one, and that lists
/// cover the index one after another, each in ascending order.
Status CheckFeatureMap(const char* op, const FeatureMapView& map);
Status CheckDropout(const char* op, const DropoutSpec& dropout, int64_t rows, int64_t cols);
/// Checks for a factor that is finite in f32.
Status CheckFactor(const char* op, const char* operand, float value);

/// The memory that one call reads and writes. Compares addresses, not storages, because two
/// storages may share memory (Tensor.wrap).
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
  Ranges& Out(const char* name, const IndexOut& indices);
  /// Its codes and scales. The tables are only read.
  Ranges& Out(const char* name, const QuantView& w) { return Add(name, w, true); }

  /// Checks that no output overlaps anything else, because all are written in one pass. Sorts by
  /// address, because a batch may have many adapters.
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
