/// Root-mean-square norms (Zhang and Sennrich, 2019, arXiv:1910.07467).
#pragma once

#include "native/core/status.h"
#include "native/core/tensor_view.h"

namespace lowrank {

/// Of each row of s = x + residual, rounded to the dtype of x, or of s = x without one:
///
///   inv_rms = (mean s² + eps)^-½      y = s · inv_rms · gain      gain = g, or 1 + g
///
/// mean s² is summed in double; each product is rounded to f32, y once to its dtype.
struct RmsNormOp {
  static constexpr const char* kName = "rmsNormForward";
  TensorView x;         // [M, D]  any dtype
  TensorView residual;  // [M, D]  any dtype, optional
  TensorView g;         // [1, D]  any dtype
  TensorView sum;       // [M, D]  out, dtype of x; present where residual is
  TensorView y;         // [M, D]  out, dtype of x
  TensorView inv_rms;   // [1, M]  f32, out, optional
  float eps = 0;
  bool plus_one = false;  // gain = 1 + g
  Status Check() const;
  std::string Describe() const;
};

/// With u = gain ⊙ dy and c = Σ s · u of a row (summed in double):
///
///   dx = inv_rms · u - s · (inv_rms³ · c / D) + d_sum      dg = Σₘ dy ⊙ s · inv_rms
///
/// dx is the gradient of x and of residual. An output that is not present is not computed.
struct RmsNormBackwardOp {
  static constexpr const char* kName = "rmsNormBackward";
  TensorView dy;       // [M, D]  any dtype
  TensorView s;        // [M, D]  any dtype: x, or RmsNormOp's sum
  TensorView g;        // [1, D]  any dtype
  TensorView inv_rms;  // [1, M]  f32
  TensorView d_sum;    // [M, D]  any dtype, optional: the gradient of RmsNormOp's sum
  TensorView dx;       // [M, D]  out, optional, dtype of s
  TensorView dg;       // [1, D]  out, optional, f32
  bool plus_one = false;
  Status Check() const;
  std::string Describe() const;
};

}  // namespace lowrank
