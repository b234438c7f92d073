/// The register tile of int8 codes: C [mr, nr] (+)= A panel · B panel (pack_int8.h).
///
/// The products of the codes of a block of 64 are summed in int32 accumulators, which stay in
/// registers. At its end they are converted, scaled and added to C, which is in L1: 4 instructions
/// on top of the 16 (VNNI) or 64 for an accumulator's block. The product of scales, its product
/// with the sum, and the sum with C are each rounded, never fused, so that every instruction set
/// has the same bits.
#pragma once

#include "native/cpu/kernels/int8/pack_int8.h"
#include "native/cpu/kernels/tile/ask_ahead.h"

namespace lowrank::cpu::LOWRANK_ISA {

LOWRANK_INLINE VecI SplatCodes(const float* unit) {
  uint32_t bits;
  std::memcpy(&bits, unit, 4);
  return reinterpret_cast<VecI>(SplatU(bits));
}

template <int kRows, int kVectors>
static void Int8Tile(const TileBlocks& blocks, const float* a, const float* b, float* c,
                     int64_t ldc, bool first) {
  constexpr int kWidth = kVectors * kVL;
  if (first) {
    for (int i = 0; i < kRows; ++i) {
      for (int v = 0; v < kWidth; v += kVL) Store(c + i * ldc + v, VecF{});
    }
  }
  int segments;
  std::memcpy(&segments, b, sizeof(segments));
  b += kPanelHeader;
  for (int64_t block = 0; block < blocks.ku; block += kBlockUnits, a += kBlockUnits * kRows) {
    const float* corrections = a + kCodeUnits * kRows;
    const float* scales = corrections + kRows;
    for (int s = 0; s < segments; ++s, b += kWidth) {
      VecI acc[kRows][kVectors];
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) {
        const VecI correction = SplatCodes(corrections + i);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) acc[i][v] = correction;
      }
      const float* x = a;
      for (int u = 0; u < kCodeUnits; ++u, b += kWidth, x += kRows) {
        VecI columns[kVectors];
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) columns[v] = reinterpret_cast<VecI>(LoadU(b + v * kVL));
        AskAhead<kRows, kWidth>(x, b);
#pragma GCC unroll 16
        for (int i = 0; i < kRows; ++i) {
          const VecI unit = SplatCodes(x + i);
#pragma GCC unroll 4
          for (int v = 0; v < kVectors; ++v) acc[i][v] = DotCodes(acc[i][v], columns[v], unit);
        }
      }
      VecF weight_scale[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) weight_scale[v] = Load(b + v * kVL);
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) {
        const VecF scale = Splat(scales[i]);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
          float* out = c + i * ldc + v * kVL;
          const VecF sum = __builtin_convertvector(acc[i][v], VecF);
          Store(out, Load(out) + sum * (scale * weight_scale[v]));
        }
      }
    }
  }
}

}  // namespace lowrank::cpu::LOWRANK_ISA
