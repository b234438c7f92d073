/// Every kernel of one instruction set: included once by each kernels_<isa>.cpp, which names the
/// namespace (LOWRANK_ISA), the table (LOWRANK_ISA_NAME), and the set that it leaves to others what
/// it does not do in another way, if there is one (LOWRANK_ISA_BASE, base_set.h).
#pragma once

#include "native/cpu/kernels/decode/quantize.h"
#include "native/cpu/kernels/layers/block_matmul.h"
#include "native/cpu/kernels/layers/feature_map.h"
#include "native/cpu/kernels/layers/lora_grouped.h"
#include "native/cpu/kernels/layers/lora_parts.h"
#include "native/cpu/kernels/layers/weight_norms.h"

/// An op that is the base's, where there is one, but for what owns(op) says of it in a set that can
/// have such products of its own.
#define LOWRANK_UNLESS(can, owns, member, function)                         \
  [](const auto& op, const RunContext& context) {                           \
    if constexpr (!kHasBase) {                                              \
      return function(op, context);                                         \
    } else if constexpr (can) {                                             \
      return owns(op) ? function(op, context) : Base().member(op, context); \
    } else {                                                                \
      return Base().member(op, context);                                    \
    }                                                                       \
  }
#define LOWRANK_OF_BASE(member, function) LOWRANK_UNLESS(false, Never, member, function)
#define LOWRANK_FORWARD(member, function) LOWRANK_UNLESS(true, OwnsForward, member, function)
#define LOWRANK_OF_PAIRS(owns, member, function) LOWRANK_UNLESS(kHasBF16Dot, owns, member, function)

namespace lowrank::cpu::LOWRANK_ISA {

extern const IsaKernels kKernels = {
    LOWRANK_ISA_NAME,
    LOWRANK_OF_BASE(quantize, Quantize),
    LOWRANK_OF_BASE(dequantize, Dequantize),
    LOWRANK_FORWARD(matmul, Matmul),
    LOWRANK_OF_PAIRS(OwnsBackward, matmul_input_grad, MatmulInputGrad),
    LOWRANK_FORWARD(lora_forward, LoraForward),
    LoraForwardMany,
    LoraForwardSwiglu,
    LOWRANK_OF_PAIRS(OwnsBackward, lora_backward, LoraBackward),
    LOWRANK_OF_BASE(lora_shrink, LoraShrink),
    LOWRANK_UNLESS(true, OwnsExpand, lora_expand, LoraExpand),
    LOWRANK_OF_BASE(lora_expand_backward, LoraExpandBackward),
    LOWRANK_OF_PAIRS(OwnsBackward, lora_shrink_backward, LoraShrinkBackward),
    LOWRANK_OF_BASE(weight_grad, WeightGrad),
    LOWRANK_FORWARD(grouped_forward, GroupedForward),
    LOWRANK_OF_PAIRS(OwnsBackward, grouped_backward, GroupedBackward),
    LOWRANK_OF_BASE(multiply_add, MultiplyAdd),
    LOWRANK_OF_BASE(map, Map),
    LOWRANK_OF_BASE(swiglu, Swiglu),
    LOWRANK_OF_BASE(swiglu_backward, SwigluBackward),
    LOWRANK_OF_BASE(sum_product, SumProduct),
    LOWRANK_OF_BASE(map_features, MapFeatures),
    LOWRANK_OF_PAIRS(OwnsBlocks, block_matmul, BlockMatmul),
    LOWRANK_OF_PAIRS(OwnsBlocksBackward, block_input_grad, BlockMatmulInputGrad),
    LOWRANK_OF_BASE(block_weight_grad, BlockWeightGrad),
    LOWRANK_OF_BASE(weight_norms, WeightNorms),
    LOWRANK_OF_PAIRS(OwnsNorm, factored_norm, FactoredNorm),
    LOWRANK_OF_BASE(quantize_scales, QuantizeScales),
    LOWRANK_OF_BASE(cast, Cast),
    ForwardRuns,
    {PickTile<F32Policy>, FindShrinkTile, FindFactorRows, FindThinDot},
};

}  // namespace lowrank::cpu::LOWRANK_ISA
