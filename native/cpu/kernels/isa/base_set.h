/// What an instruction set takes from another. A set that differs only in how it multiplies int8
/// codes or pairs of bf16 names a base set (LOWRANK_ISA_BASE). It shares the rest with the base:
/// products in f32, ops without products, and the f32 tiles of its own ops (base_tiles.h) are the
/// base's, compiled once. avx512-vnni has its own code products and takes the rest from avx512,
/// avx512-bf16 has its own pairs and takes the rest from avx512-vnni, and avx512-amx has both on
/// top of avx512. A set without a base has everything itself, and so has every set of a sanitizer's
/// build, which tests each set alone (LOWRANK_WHOLE_SETS).
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

/// Is this a product of bf16 pairs, that is, does the set have the dot product, and are both
/// operands bf16 (a packed weight is rounded to the activations' dtype)?
LOWRANK_INLINE bool IsOfPairs(DType activations, const WeightView& w) {
  return kHasBF16Dot && activations == DType::kBF16 &&
         (!w.dense.present || w.dense.dtype == DType::kBF16);
}

/// Does this set have its own products of codes? A set that adds the dot product of pairs to codes
/// multiplies codes as its base does; tiles do it in another way.
constexpr bool kOwnsCodes = !kHasBase || kHasTiles || !kHasBF16Dot;

/// Calls body with the policy of this product. A set with a base never gets a product in f32.
template <typename Body>
LOWRANK_INLINE void WithPolicy(DType activations, const WeightView& w, const Body& body) {
  if constexpr (kHasBF16Dot) {
    if (IsOfPairs(activations, w)) {
      body(BF16Policy{});
      return;
    }
  }
  if constexpr (kHasBase) {
    __builtin_trap();  // a missing result would go unnoticed
  } else {
    body(F32Policy{});
  }
}

/// Does this set compute a forward op itself? It does for codes of its own, and for bf16 pairs.
template <typename Op>
LOWRANK_INLINE bool OwnsForward(const Op& op) {
  if (!kHasBase) return true;
  return op.compute == Compute::kExact ? IsOfPairs(op.x.dtype, op.w) : kOwnsCodes;
}
/// If norms are computed with a product of codes, they use bf16 pairs, as in FactoredNorm().
template <typename Op>
LOWRANK_INLINE bool OwnsExpand(const Op& op) {
  return OwnsForward(op) || (op.norms.present && IsOfPairs(op.x.dtype, op.w));
}
/// Does this set compute a backward op itself? It does if dx is wanted and uses bf16 pairs.
template <typename Op>
LOWRANK_INLINE bool OwnsBackward(const Op& op) {
  return op.dx.present && IsOfPairs(op.dy.dtype, op.w);
}

}  // namespace lowrank::cpu::LOWRANK_ISA
