/// Every kernel of one instruction set. Each kernels_<isa>.cpp includes it once and defines the
/// namespace (LOWRANK_ISA), the table (LOWRANK_ISA_NAME) and, optionally, the base set that
/// provides the kernels which this set does not change (LOWRANK_ISA_BASE, base_set.h).
#pragma once

#include "native/cpu/kernels/decode/quantize.h"
#include "native/cpu/kernels/layers/block_matmul.h"
#include "native/cpu/kernels/layers/feature_map.h"
#include "native/cpu/kernels/layers/lora_grouped.h"
#include "native/cpu/kernels/layers/lora_parts.h"
#include "native/cpu/kernels/layers/routes.h"
#include "native/cpu/kernels/layers/weight_norms.h"

namespace lowrank::cpu::LOWRANK_ISA {

/// Which calls of an op a set with a base (base_set.h) computes itself. By default none: the base
/// computes them.
template <typename Op>
struct Own {
  static constexpr bool kSome = false;
  static bool Owns(const Op& /*op*/) { return false; }
};
#define LOWRANK_OWN(Type, some, owns)                 \
  template <>                                         \
  struct Own<Type> {                                  \
    static constexpr bool kSome = some;               \
    static bool Owns(const Type& op) { return owns; } \
  };
LOWRANK_OWN(MatmulOp, true, OwnsForward(op))
LOWRANK_OWN(MatmulInputGradOp, kHasBF16Dot, OwnsBackward(op))
LOWRANK_OWN(LoraForwardOp, true, OwnsForward(op))
LOWRANK_OWN(LoraForwardManyOp, true, (static_cast<void>(op), true))  // decides a part at a time
LOWRANK_OWN(LoraForwardSwigluOp, true, (static_cast<void>(op), true))
LOWRANK_OWN(LoraBackwardOp, kHasBF16Dot, OwnsBackward(op))
LOWRANK_OWN(LoraExpandOp, true, OwnsExpand(op))
LOWRANK_OWN(LoraShrinkBackwardOp, kHasBF16Dot, OwnsBackward(op))
LOWRANK_OWN(GroupedForwardOp, true, OwnsForward(op))
LOWRANK_OWN(GroupedBackwardOp, kHasBF16Dot, OwnsBackward(op))
LOWRANK_OWN(BlockMatmulOp, kHasBF16Dot, OwnsBlocks(op))
LOWRANK_OWN(BlockMatmulInputGradOp, kHasBF16Dot, OwnsBlocksBackward(op))
LOWRANK_OWN(FactoredNormOp, kHasBF16Dot, OwnsNorm(op))
#undef LOWRANK_OWN

extern const IsaKernels kKernels = {
    LOWRANK_ISA_NAME,
#define LOWRANK_KERNEL_OF(Name, member)                      \
  [](const Name##Op& op, const RunContext& context) {        \
    if constexpr (!kHasBase) {                               \
      return Name(op, context);                              \
    } else if constexpr (Own<Name##Op>::kSome) {             \
      if (Own<Name##Op>::Owns(op)) return Name(op, context); \
    }                                                        \
    return Base().member(op, context);                       \
  },
    LOWRANK_FOR_EACH_ISA_OP(LOWRANK_KERNEL_OF)
#undef LOWRANK_KERNEL_OF
        ForwardRuns,
    {PickTile<F32Policy>, FindShrinkTile, FindFactorRows, FindThinDot},
    {ForwardRoutes, InputGradRoutes},
};

}  // namespace lowrank::cpu::LOWRANK_ISA
