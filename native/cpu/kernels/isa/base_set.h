/// What a set leaves to another. One that differs in how it multiplies int8 codes or pairs of bf16
/// names the set that it shares the rest with (LOWRANK_ISA_BASE): products in f32, ops that are
/// none, and the tiles in f32 of its own ops (base_tiles.h) are that one's, compiled once.
/// avx512-vnni has codes and avx512 the rest, avx512-bf16 has pairs and avx512-vnni the rest, and
/// avx512-amx has both beside avx512. A set without a base has all of them, as has every set of a
/// sanitizer's build, which looks into one alone (LOWRANK_WHOLE_SETS).
#pragma once

#include "native/cpu/kernels/isa/isa_kernels.h"
#include "native/cpu/kernels/pack/pack.h"

namespace lowrank::cpu::LOWRANK_ISA {

extern const IsaKernels kKernels;

#if defined(LOWRANK_ISA_BASE) && !defined(LOWRANK_WHOLE_SETS)
constexpr bool kHasBase = true;
LOWRANK_INLINE const IsaKernels& Base() { return LOWRANK_ISA_BASE::kKernels; }
#else
constexpr bool kHasBase = false;
LOWRANK_INLINE const IsaKernels& Base() { return kKernels; }
#endif

/// Is this product one of bf16 pairs: the set has the dot product and both operands are bf16 (a
/// packed weight is rounded to the activations' dtype)?
LOWRANK_INLINE bool IsOfPairs(DType activations, const WeightView& w) {
  return kHasBF16Dot && activations == DType::kBF16 &&
         (!w.dense.present || w.dense.dtype == DType::kBF16);
}

/// Are products of codes this set's own? One that adds the dot product of pairs to codes multiplies
/// these as its base does; tiles do it in another way.
constexpr bool kOwnsCodes = !kHasBase || kHasTiles || !kHasBF16Dot;

/// Calls body with the policy of this product. In f32 it is never one of a set with a base.
template <typename Body>
LOWRANK_INLINE void WithPolicy(DType activations, const WeightView& w, const Body& body) {
  if constexpr (kHasBF16Dot) {
    if (IsOfPairs(activations, w)) {
      body(BF16Policy{});
      return;
    }
  }
  if constexpr (kHasBase) {
    __builtin_trap();  // a result of nothing would go unseen
  } else {
    body(F32Policy{});
  }
}

/// Is an op with a product this set's own? Forward it is of codes, or of pairs.
template <typename Op>
LOWRANK_INLINE bool OwnsForward(const Op& op) {
  if (!kHasBase) return true;
  return op.compute == Compute::kExact ? IsOfPairs(op.x.dtype, op.w) : kOwnsCodes;
}
/// The norms beside a product of codes are those of pairs, as FactoredNorm() has them.
template <typename Op>
LOWRANK_INLINE bool OwnsExpand(const Op& op) {
  return OwnsForward(op) || (op.norms.present && IsOfPairs(op.x.dtype, op.w));
}
/// Backward: that of dx, where it is asked for.
template <typename Op>
LOWRANK_INLINE bool OwnsBackward(const Op& op) {
  return op.dx.present && IsOfPairs(op.dy.dtype, op.w);
}

}  // namespace lowrank::cpu::LOWRANK_ISA
