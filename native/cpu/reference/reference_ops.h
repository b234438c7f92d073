/// The formulas in separate files, for the table in reference.cpp.
#pragma once

#include "native/cpu/reference/reference_math.h"

namespace lowrank::cpu::reference {

// reference_lora.cpp
Status LoraForward(const LoraForwardOp& op, const RunContext& context);
Status LoraBackward(const LoraBackwardOp& op, const RunContext& context);
Status LoraShrink(const LoraShrinkOp& op, const RunContext& context);
Status LoraExpand(const LoraExpandOp& op, const RunContext& context);
Status LoraExpandBackward(const LoraExpandBackwardOp& op, const RunContext& context);
Status LoraShrinkBackward(const LoraShrinkBackwardOp& op, const RunContext& context);
Status WeightGrad(const WeightGradOp& op, const RunContext& context);

// reference_grouped.cpp
Status GroupedForward(const GroupedForwardOp& op, const RunContext& context);
Status GroupedBackward(const GroupedBackwardOp& op, const RunContext& context);

// reference_elementwise.cpp
Status MultiplyAdd(const MultiplyAddOp& op, const RunContext& context);
Status Map(const MapOp& op, const RunContext& context);
Status GatedActivation(const GatedActivationOp& op, const RunContext& context);
Status GatedActivationBackward(const GatedActivationBackwardOp& op, const RunContext& context);
Status SumProduct(const SumProductOp& op, const RunContext& context);

// reference_attention.cpp
Status Attention(const AttentionOp& op, const RunContext& context);
Status AttentionBackward(const AttentionBackwardOp& op, const RunContext& context);

// reference_experts.cpp
Status RouteRows(const RouteRowsOp& op, const RunContext& context);
Status SelectExperts(const SelectExpertsOp& op, const RunContext& context);
Status SelectExpertsBackward(const SelectExpertsBackwardOp& op, const RunContext& context);
Status ExpertsForward(const ExpertsForwardOp& op, const RunContext& context);
Status ExpertsBackward(const ExpertsBackwardOp& op, const RunContext& context);
Status CombineRows(const CombineRowsOp& op, const RunContext& context);
Status CombineRowsBackward(const CombineRowsBackwardOp& op, const RunContext& context);

// reference_loss.cpp
Status Embedding(const EmbeddingOp& op, const RunContext& context);
Status LinearCrossEntropy(const LinearCrossEntropyOp& op, const RunContext& context);

// reference_norm.cpp
Status RmsNorm(const RmsNormOp& op, const RunContext& context);
Status RmsNormBackward(const RmsNormBackwardOp& op, const RunContext& context);

// reference_optimizer.cpp
Status GlobalNorm(const GlobalNormOp& op, const RunContext& context);
Status OptimizerStep(const OptimizerStepOp& op, const RunContext& context);

// reference_features.cpp
Status MapFeatures(const MapFeaturesOp& op, const RunContext& context);
Status BlockMatmul(const BlockMatmulOp& op, const RunContext& context);
Status BlockMatmulInputGrad(const BlockMatmulInputGradOp& op, const RunContext& context);
Status BlockWeightGrad(const BlockWeightGradOp& op, const RunContext& context);
Status WeightNorms(const WeightNormsOp& op, const RunContext& context);
Status FactoredNorm(const FactoredNormOp& op, const RunContext& context);

}  // namespace lowrank::cpu::reference
