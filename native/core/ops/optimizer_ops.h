/// A step of an optimiser over many parameters, and the norm of their gradients.
#pragma once

#include <cstdint>
#include <limits>
#include <string>

#include "native/core/status.h"
#include "native/core/tensor_view.h"
#include "native/host_device/optimizer_step.h"

namespace lowrank {

/// Elements of one piece of a tensor: pieces are the tasks of a step and the terms of a norm, so a
/// norm has the same bits for any number of threads.
constexpr int64_t kOptimizerPiece = 16384;

constexpr int64_t OptimizerPieces(int64_t elems) {
  return (elems + kOptimizerPiece - 1) / kOptimizerPiece;
}

/// A gradient, in any shape, and the pieces of those before it.
struct GradientPart {
  TensorView g;  // any dtype
  int64_t first_piece = 0;
};

/// norm = (Σ g²)^½ over all elements of all gradients. Σ in double, where a square of f32 is exact:
/// the elements of a piece in 16 lanes, the lanes in ascending order, then the pieces. Rounded once
/// to f32.
struct GlobalNormOp {
  static constexpr const char* kName = "globalNorm";
  static constexpr int64_t kLanes = 16;
  const GradientPart* parts = nullptr;  // OpRefs::tables keeps them
  int64_t count = 0;                    // from 1 on
  int64_t pieces = 0;                   // of all parts
  TensorView norm;                      // [1, 1]  f32, out
  Status Check() const;
  std::string Describe() const;
};

/// A parameter, its gradient and its states, all of one shape.
struct ParameterPart {
  TensorView p;                    // any dtype, updated
  TensorView g;                    // any dtype
  TensorView states[kMostStates];  // f32, updated: as many as the kind has
  float lr_scale = 1;
  float weight_decay = 0;
  int64_t first_piece = 0;
};

/// One step (native/host_device/optimizer_step.h has the formulas). p is widened to f32, updated,
/// and rounded once to its dtype. If the norm or the rate is not finite, or the rate is negative,
/// nothing is written.
struct OptimizerStepOp {
  static constexpr const char* kName = "optimizerStep";
  Optimizer kind = Optimizer::kAdamW;
  OptimizerSettings settings;
  const ParameterPart* parts = nullptr;  // OpRefs::tables keeps them
  int64_t count = 0;                     // from 1 on
  int64_t pieces = 0;                    // of all parts
  float lr = 0;
  TensorView lr_at;  // [1, 1]  f32, optional: replaces lr
  int64_t step = 1;  // the number of this step
  /// [1, 1] f32, updated, optional: the number of steps done. The op does the next one and adds
  /// one, unless nothing is written. Replaces `step`.
  TensorView steps_done;
  TensorView norm;  // [1, 1]  f32, optional: GlobalNormOp's
  Status Check() const;
  std::string Describe() const;
};

}  // namespace lowrank
