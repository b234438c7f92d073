/// What the Check() of the descriptors share. Each refusal names the operand, what was expected and
/// what came.
#pragma once

#include <string>

#include "native/core/ops.h"

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

struct NamedView {
  const char* name;
  const TensorView* view;
};

Status CheckDistinct(const char* op, const char* out_name, const TensorView& out,
                     const char* in_name, const TensorView& in);

/// An output may lie over no operand and over no other output: they are all written in one pass.
template <size_t kOutputs, size_t kInputs>
Status CheckApart(const char* op, const NamedView (&outputs)[kOutputs],
                  const NamedView (&inputs)[kInputs]) {
  for (const NamedView& out : outputs) {
    for (const NamedView& in : inputs) {
      LOWRANK_RETURN_IF_ERROR(CheckDistinct(op, out.name, *out.view, in.name, *in.view));
    }
    for (const NamedView* other = outputs; other->view != out.view; ++other) {
      LOWRANK_RETURN_IF_ERROR(CheckDistinct(op, out.name, *out.view, other->name, *other->view));
    }
  }
  return Status();
}

}  // namespace lowrank
