/// The two ends of a decoder: rows of the embedding, and the loss behind the head.
#pragma once

#include "native/core/status.h"
#include "native/core/tensor_view.h"

namespace lowrank {

/// y[m] = scale · table[ids[m]], a row of zeros where there is no id. A quantised table is decoded
/// in f32; the product is rounded once to the dtype of y.
struct EmbeddingOp {
  static constexpr const char* kName = "embedding";
  IndexView ids;     // [M], below V
  WeightView table;  // [V, D]  dense of any dtype, or quantised
  TensorView y;      // [M, D]  out, any dtype
  float scale = 1;
  Status Check() const;
  std::string Describe() const;
};

/// Cross-entropy of logits z = x · headᵀ, capped at cap · tanh(z / cap) with `softcap`:
///
///   losses[m] = log Σᵥ exp z[m, v] - z[m, targets[m]]       0 without a target
///   dx[m]     = weight[m] · Σᵥ (p[m, v] - [v = targets[m]]) · z'[m, v] · head[v]
///
/// with p the softmax and z' the cap's derivative. The logits of a block of the vocabulary exist at
/// a time. p is rounded to the dtype of x, as a gradient is before the product with a weight.
struct LinearCrossEntropyOp {
  static constexpr const char* kName = "linearCrossEntropy";
  TensorView x;        // [M, K]  f16 | bf16 | f32
  WeightView head;     // [V, K]  frozen
  IndexView targets;   // [M], below V, or -1
  TensorView weights;  // [1, M]  f32, optional: 1
  TensorView losses;   // [1, M]  f32, out
  TensorView dx;       // [M, K]  out, optional, dtype of x
  float scale = 1;     // times each weight
  float softcap = 0;   // 0 is none
  Status Check() const;
  std::string Describe() const;
};

}  // namespace lowrank
