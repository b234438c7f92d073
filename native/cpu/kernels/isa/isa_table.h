/// The table of one instruction set's kernels, where an outcome becomes a Status. For units
/// compiled for the base set only (isa_kernels.h says why).
#pragma once

#include <string>

#include "native/cpu/kernels/isa/isa_kernels.h"

namespace lowrank::cpu {

inline Status ToStatus(const char* op, const Outcome& outcome) {
  switch (outcome.code) {
    case Code::kOk:
      return Status();
    case Code::kNonFinite:
      return Status(Code::kNonFinite, std::string(op) +
                                          ": w must be finite, got Inf or NaN at element " +
                                          std::to_string(outcome.index));
    case Code::kOom:
      return Status(Code::kOom, std::string(op) + ": no memory left for scratch");
    case Code::kCancelled:
      return Status(Code::kCancelled, std::string(op) + ": cancelled");
    default:
      return Status(outcome.code, std::string(op) + ": failed");
  }
}

template <const IsaKernels& kIsa>
Status Run_quantize(const QuantizeOp& op, const RunContext& context) {
  const Outcome outcome = kIsa.quantize(op, context);
  // A finite value may be what f16 is not large enough for.
  if (outcome.code == Code::kNonFinite && op.out.rowwise) {
    return Refuse(Code::kNonFinite, QuantizeOp::kName, "w", "finite in f16, being rowwise",
                  "Inf or NaN at element " + std::to_string(outcome.index));
  }
  return ToStatus(QuantizeOp::kName, outcome);
}

#define LOWRANK_WRAP(Type, member)                                 \
  template <const IsaKernels& kIsa>                                \
  Status Run_##member(const Type& op, const RunContext& context) { \
    return ToStatus(Type::kName, kIsa.member(op, context));        \
  }
LOWRANK_WRAP(DequantizeOp, dequantize)
LOWRANK_WRAP(MatmulOp, matmul)
LOWRANK_WRAP(MatmulInputGradOp, matmul_input_grad)
LOWRANK_WRAP(LoraForwardOp, lora_forward)
LOWRANK_WRAP(LoraForwardManyOp, lora_forward_many)
LOWRANK_WRAP(LoraForwardSwigluOp, lora_forward_swiglu)
LOWRANK_WRAP(LoraBackwardOp, lora_backward)
LOWRANK_WRAP(LoraShrinkOp, lora_shrink)
LOWRANK_WRAP(LoraExpandOp, lora_expand)
LOWRANK_WRAP(LoraExpandBackwardOp, lora_expand_backward)
LOWRANK_WRAP(LoraShrinkBackwardOp, lora_shrink_backward)
LOWRANK_WRAP(WeightGradOp, weight_grad)
LOWRANK_WRAP(GroupedForwardOp, grouped_forward)
LOWRANK_WRAP(GroupedBackwardOp, grouped_backward)
LOWRANK_WRAP(MultiplyAddOp, multiply_add)
LOWRANK_WRAP(MapOp, map)
LOWRANK_WRAP(SwigluOp, swiglu)
LOWRANK_WRAP(SwigluBackwardOp, swiglu_backward)
LOWRANK_WRAP(SumProductOp, sum_product)
LOWRANK_WRAP(MapFeaturesOp, map_features)
LOWRANK_WRAP(BlockMatmulOp, block_matmul)
LOWRANK_WRAP(BlockMatmulInputGradOp, block_input_grad)
LOWRANK_WRAP(BlockWeightGradOp, block_weight_grad)
LOWRANK_WRAP(WeightNormsOp, weight_norms)
LOWRANK_WRAP(FactoredNormOp, factored_norm)
LOWRANK_WRAP(QuantizeScalesOp, quantize_scales)
LOWRANK_WRAP(CastOp, cast)
#undef LOWRANK_WRAP

inline Status RunRandom(const RandomOp& op, const RunContext& context) {
  return ToStatus(RandomOp::kName, RandomKernel(op, context));
}

template <const IsaKernels& kIsa>
const KernelTable* Table(const char* name) {
  static const KernelTable table = {name,
                                    Run_quantize<kIsa>,
                                    Run_dequantize<kIsa>,
                                    Run_matmul<kIsa>,
                                    Run_matmul_input_grad<kIsa>,
                                    Run_lora_forward<kIsa>,
                                    Run_lora_forward_many<kIsa>,
                                    Run_lora_forward_swiglu<kIsa>,
                                    Run_lora_backward<kIsa>,
                                    Run_lora_shrink<kIsa>,
                                    Run_lora_expand<kIsa>,
                                    Run_lora_expand_backward<kIsa>,
                                    Run_lora_shrink_backward<kIsa>,
                                    Run_weight_grad<kIsa>,
                                    Run_grouped_forward<kIsa>,
                                    Run_grouped_backward<kIsa>,
                                    Run_multiply_add<kIsa>,
                                    Run_map<kIsa>,
                                    Run_swiglu<kIsa>,
                                    Run_swiglu_backward<kIsa>,
                                    Run_sum_product<kIsa>,
                                    Run_map_features<kIsa>,
                                    Run_block_matmul<kIsa>,
                                    Run_block_input_grad<kIsa>,
                                    Run_block_weight_grad<kIsa>,
                                    Run_weight_norms<kIsa>,
                                    Run_factored_norm<kIsa>,
                                    Run_quantize_scales<kIsa>,
                                    Run_cast<kIsa>,
                                    RunRandom};
  return &table;
}

}  // namespace lowrank::cpu
