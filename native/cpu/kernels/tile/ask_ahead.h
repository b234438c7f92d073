/// Prefetches of a register tile while it multiplies, so that its loads hit L1.
///
/// Budget     a step of the 14 x 32 tile takes 14 cycles of two 512-bit pipes (28 of one) and loads
///            128 bytes of B, which L2 has, and 56 of A, which L3 may have. About five steps fit
///            the window of waiting instructions: enough for an idle L2, not for one that A and C
///            keep busy. Prefetched with each step, lines never fill the dozen load buffers, as
///            those of a whole panel at once do. Three prefetches with 48 instructions: 13 of the
///            14 cycles issue instructions.
#pragma once

#include "native/cpu/kernels/pack/pack.h"

namespace lowrank::cpu::LOWRANK_ISA {

// Prefetch distance in steps of 6 (AVX2) or 14 cycles.
constexpr int kBAhead = 8;   // from L2, which has other users too
constexpr int kAAhead = 64;  // from L3; 24 and 256 were slower. Past a panel's end is the next one

/// Not on NEON, where it was not measured.
constexpr bool kAsksInTile = kVL >= 8;

/// Runs with a step at `a` and `b`.
template <int kRows, int kWidth>
LOWRANK_INLINE void AskAhead(const Unit* a, const Unit* b) {
  if constexpr (kAsksInTile) {
    constexpr int kLine = 64 / static_cast<int>(sizeof(Unit));
#pragma GCC unroll 4
    for (int i = 0; i < kWidth; i += kLine) __builtin_prefetch(b + kBAhead * kWidth + i, 0, 3);
    __builtin_prefetch(a + kAAhead * kRows, 0, 3);
  }
}

}  // namespace lowrank::cpu::LOWRANK_ISA
