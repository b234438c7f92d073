/// Every kernel of one instruction set: included once by each kernels_<isa>.cpp, which names the
/// namespace (LOWRANK_ISA) and the table (LOWRANK_ISA_NAME). A set that differs from another in how
/// it multiplies int8 codes, and in nothing else, names that one (LOWRANK_ISA_BASE): ops that never
/// multiply codes are then that one's. A sanitizer's build, which looks into one set alone, has
/// them whole (LOWRANK_WHOLE_SETS).
#pragma once

#include "native/cpu/kernels/block_matmul.h"
#include "native/cpu/kernels/feature_map.h"
#include "native/cpu/kernels/lora_grouped.h"
#include "native/cpu/kernels/lora_parts.h"
#include "native/cpu/kernels/quantize.h"
#include "native/cpu/kernels/weight_norms.h"

#if defined(LOWRANK_ISA_BASE) && !defined(LOWRANK_WHOLE_SETS)
#define LOWRANK_OF_BASE(member, function)                  \
  [](const auto& op, const RunContext& context) {          \
    return LOWRANK_ISA_BASE::kKernels.member(op, context); \
  }
#else
#define LOWRANK_OF_BASE(member, function) function
#endif

namespace lowrank::cpu::LOWRANK_ISA {

extern const IsaKernels kKernels = {
    LOWRANK_ISA_NAME,
    LOWRANK_OF_BASE(quantize, Quantize),
    LOWRANK_OF_BASE(dequantize, Dequantize),
    Matmul,
    LOWRANK_OF_BASE(matmul_input_grad, MatmulInputGrad),
    LoraForward,
    LoraForwardMany,
    LoraForwardSwiglu,
    LOWRANK_OF_BASE(lora_backward, LoraBackward),
    LOWRANK_OF_BASE(lora_shrink, LoraShrink),
    LOWRANK_OF_BASE(lora_expand, LoraExpand),
    LOWRANK_OF_BASE(lora_expand_backward, LoraExpandBackward),
    LOWRANK_OF_BASE(lora_shrink_backward, LoraShrinkBackward),
    LOWRANK_OF_BASE(weight_grad, WeightGrad),
    GroupedForward,
    LOWRANK_OF_BASE(grouped_backward, GroupedBackward),
    LOWRANK_OF_BASE(multiply_add, MultiplyAdd),
    LOWRANK_OF_BASE(map, Map),
    LOWRANK_OF_BASE(swiglu, Swiglu),
    LOWRANK_OF_BASE(swiglu_backward, SwigluBackward),
    LOWRANK_OF_BASE(sum_product, SumProduct),
    LOWRANK_OF_BASE(map_features, MapFeatures),
    LOWRANK_OF_BASE(block_matmul, BlockMatmul),
    LOWRANK_OF_BASE(block_input_grad, BlockMatmulInputGrad),
    LOWRANK_OF_BASE(block_weight_grad, BlockWeightGrad),
    LOWRANK_OF_BASE(weight_norms, WeightNorms),
    LOWRANK_OF_BASE(factored_norm, FactoredNorm),
    LOWRANK_OF_BASE(quantize_scales, QuantizeScales),
    LOWRANK_OF_BASE(cast, Cast),
};

}  // namespace lowrank::cpu::LOWRANK_ISA
