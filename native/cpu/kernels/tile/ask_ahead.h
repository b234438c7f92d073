/// What a register tile asks for while it multiplies, so that its loads find it in L1.
///
/// Budget     a step of the 14 x 32 tile takes 14 cycles of two 512-bit pipes (28 of one) and loads
///            128 bytes of B, which L2 has, and 56 of A, which L3 may have. Some five steps fit
///            into the window of instructions that wait: enough for L2 alone, not for L2 that A and
///            C keep busy. Asked for with each step, lines never fill the dozen buffers that loads
///            wait in, as those of a whole panel at once do. Three requests beside 48 instructions:
///            13 of the 14 cycles are issued in.
#pragma once

#include "native/cpu/kernels/pack/pack.h"

namespace lowrank::cpu::LOWRANK_ISA {

// Steps, of 6 (AVX2) or 14 cycles.
constexpr int kBAhead = 8;   // L2, beside its other users
constexpr int kAAhead = 64;  // L3; 24 and 256 were slower. Past a panel's end the next one begins

/// Not on NEON, where it was not measured.
constexpr bool kAsksInTile = kVL >= 8;

/// Beside a step at `a` and `b`.
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
