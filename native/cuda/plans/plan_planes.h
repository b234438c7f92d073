/// Planar weights: a product over one is a product over what one launch decodes it to, in the
/// workspace and in the dtype that the op rounds decoded weights to.
#pragma once

#include <array>
#include <type_traits>
#include <utility>

#include "native/cuda/plans/plan.h"

namespace lowrank::cuda {

/// Decodes a planar weight to y [rows, cols] (cuda/quantize/planes_sm80.cu).
Status PlanPlanes(const QuantView& w, const TensorView& y, Plan* plan);

/// Replaces a planar weight by a dense one in the workspace. Others stay.
inline Status DecodeIntoWorkspace(DType dtype, Workspace* workspace, Plan* plan, WeightView* w) {
  if (!w->quantised() || !w->quant.planar()) return Status();
  TensorView dense;
  dense.present = true;
  dense.dtype = dtype;
  dense.rows = w->quant.rows;
  dense.cols = w->quant.cols;
  dense.data = workspace->Take<char>(static_cast<int64_t>(dense.bytes()));
  LOWRANK_RETURN_IF_ERROR(PlanPlanes(w->quant, dense, plan));
  w->dense = dense;
  return Status();
}

template <typename Op, typename = void>
struct HasWeight : std::false_type {};
template <typename Op>
struct HasWeight<Op, std::enable_if_t<std::is_same_v<decltype(std::declval<Op>().w), WeightView>>>
    : std::true_type {};

/// The dtype to which an op rounds a decoded weight.
template <typename Op>
DType WeightDType(const Op& op) {
  if constexpr (std::is_same_v<Op, WeightNormsOp>) {
    return DType::kF32;
  } else if constexpr (std::is_same_v<Op, FactoredNormOp>) {
    return op.product;
  } else if constexpr (std::is_same_v<Op, MatmulInputGradOp> ||
                       std::is_same_v<Op, LoraBackwardOp> ||
                       std::is_same_v<Op, LoraShrinkBackwardOp> ||
                       std::is_same_v<Op, GroupedBackwardOp> ||
                       std::is_same_v<Op, ExpertsBackwardOp>) {
    return op.dy.dtype;
  } else {
    return op.x.dtype;
  }
}

/// MakePlan of an op whose weights have been decoded. Kernels may load weights before they wait, so
/// its first step waits until they are.
template <typename Op>
Status PlanDecoded(const Op& op, const DeviceLimits& device, Workspace* workspace, Plan* plan) {
  const size_t decoded = plan->steps.size();
  LOWRANK_RETURN_IF_ERROR(MakePlan(op, device, workspace, plan));
  if (decoded != 0 && decoded < plan->steps.size()) plan->steps[decoded].overlaps = false;
  return Status();
}

/// MakePlan for an op with weights of any kind: planar ones are decoded first.
template <typename Op>
Status MakeWholePlan(const Op& op, const DeviceLimits& device, Workspace* workspace, Plan* plan) {
  if constexpr (HasWeight<Op>::value) {
    Op own = op;
    LOWRANK_RETURN_IF_ERROR(DecodeIntoWorkspace(WeightDType(op), workspace, plan, &own.w));
    return PlanDecoded(own, device, workspace, plan);
  } else if constexpr (std::is_same_v<Op, LoraForwardManyOp>) {
    std::array<LoraForwardOp, LoraForwardManyOp::kMost> parts;
    for (int64_t i = 0; i < op.count; ++i) {
      LoraForwardOp& part = parts[static_cast<size_t>(i)];
      part = op.parts[i];
      LOWRANK_RETURN_IF_ERROR(DecodeIntoWorkspace(part.x.dtype, workspace, plan, &part.w));
    }
    LoraForwardManyOp own = op;
    own.parts = parts.data();
    return PlanDecoded(own, device, workspace, plan);
  } else if constexpr (std::is_same_v<Op, LoraForwardSwigluOp>) {
    LoraForwardSwigluOp own = op;
    LOWRANK_RETURN_IF_ERROR(DecodeIntoWorkspace(op.gate.x.dtype, workspace, plan, &own.gate.w));
    LOWRANK_RETURN_IF_ERROR(DecodeIntoWorkspace(op.up.x.dtype, workspace, plan, &own.up.w));
    return PlanDecoded(own, device, workspace, plan);
  } else if constexpr (std::is_same_v<Op, EmbeddingOp>) {
    EmbeddingOp own = op;
    LOWRANK_RETURN_IF_ERROR(DecodeIntoWorkspace(DType::kF32, workspace, plan, &own.table));
    return PlanDecoded(own, device, workspace, plan);
  } else if constexpr (std::is_same_v<Op, LinearCrossEntropyOp>) {
    LinearCrossEntropyOp own = op;
    LOWRANK_RETURN_IF_ERROR(DecodeIntoWorkspace(op.x.dtype, workspace, plan, &own.head));
    return PlanDecoded(own, device, workspace, plan);
  } else {
    return MakePlan(op, device, workspace, plan);
  }
}

}  // namespace lowrank::cuda
