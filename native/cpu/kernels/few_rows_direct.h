/// dx = dy · dequant(w) for as few rows of dy as one register tile holds: few_rows.h's counterpart
/// along the other index.
///
/// Lanes are kVL columns of dx, and of one row of w: its codes are spread over the lanes by one
/// broadcast and one shift a lane, and share a scale. A unit is one row of w, with the bf16 policy
/// two: the codes of both alternate in the lanes before they are looked up, so that the rounded
/// halves are neighbours.
///
/// Numerics    those of tile.h, bit for bit
/// Memory      a block of kKC rows by a task's columns (128 bytes of each row) is small enough for
///             the L2 and read once for every kVectors of them
#pragma once

#include "native/cpu/kernels/row_dot.h"

namespace lowrank::cpu::LOWRANK_ISA {

/// As many sums as registers hold beside the temporaries; one row of x has enough of them anyway.
template <int kRows>
constexpr int FewRowsDirectVectors() {
  int vectors = 8;
  while (vectors > 1 && (kRows * vectors > kRegisters - 8 || kRows * (vectors / 2) >= 8)) {
    vectors /= 2;
  }
  return vectors;
}

/// Vectors of one unit, from left to right; a scale is looked up where a block begins.
template <bool kPairs, DType kRound>
struct DirectDecoder;

template <DType kRound>
struct DirectDecoder<false, kRound> {
  const QuantView& w;
  Table16 table;
  int shift;
  VecF scale = {};

  /// The kVL columns from element e on. Unused: how far it is to the unit's other row.
  LOWRANK_MEMBER_INLINE VecF At(int64_t e, int64_t, bool first) {
    if (first || (e & (w.blocksize - 1)) == 0) scale = Splat(BlockScale(w, e >> shift));
    return RoundTo(kRound, Lookup(table, SpreadCodes(w.codes + (e >> 1))) * scale);
  }
};

template <DType kRound>
struct DirectDecoder<true, kRound> {
  const QuantView& w;
  Table16 table;
  int shift;
  VecF even_scale = {}, odd_scale = {};

  /// The other row is `apart` elements on; 0: there is none, and zeros take its place.
  LOWRANK_MEMBER_INLINE VecF At(int64_t e, int64_t apart, bool first) {
    const int64_t block = w.blocksize - 1;
    if (first || (e & block) == 0) even_scale = Splat(BlockScale(w, e >> shift));
    if (first || ((e + apart) & block) == 0) {
      odd_scale = apart == 0 ? VecF{} : Splat(BlockScale(w, (e + apart) >> shift));
    }
    const VecF scale = AsFloat(Alternate(Bits(even_scale), Bits(odd_scale)));
    uint32_t even[2], odd[2];
    std::memcpy(even, w.codes + (e >> 1), sizeof(even));
    std::memcpy(odd, w.codes + ((e + apart) >> 1), sizeof(odd));
    VecU shifts;
#pragma GCC unroll 16
    for (int i = 0; i < kVL; ++i) shifts[i] = static_cast<uint32_t>(NibbleShift(i / 2));
    const VecU low = Alternate(SplatU(even[0]), SplatU(odd[0])) >> shifts;
    const VecU high = Alternate(SplatU(even[1]), SplatU(odd[1])) >> shifts;
    return AsFloat(NeighboursBF16(Lookup(table, low) * scale, Lookup(table, high) * scale));
  }
};

/// c [kRows, kVectors · kVL] (+)= a · w, over rows [k0, k0 + kc) of w from column n on.
template <typename Policy, DType kRound, int kRows, int kVectors>
static void FewRowsDirectTile(const RowSource& source, int64_t k0, int64_t kc, int64_t n,
                              const Unit* a, float* c, int64_t ldc, bool first) {
  const QuantView& w = *source.quant;
  const int shift = __builtin_ctzll(static_cast<uint64_t>(w.blocksize));
  DirectDecoder<Policy::kPairs, kRound> decoder = {w, source.table, shift};
  VecF acc[kRows][kVectors] = {};
  constexpr int64_t kStep = Policy::kPairs ? 2 : 1;
  for (int64_t k = 0; k < kc; k += kStep) {
    const int64_t e = (k0 + k) * w.cols + n;
    const int64_t apart = k + 1 < kc ? w.cols : 0;
    VecF columns[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      columns[v] = decoder.At(e + v * kVL, apart, v == 0);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) acc[i][v] = Policy::Step(acc[i][v], a[i], columns[v]);
    }
    a += kRows;
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      float* out = c + i * ldc + v * kVL;
      Store(out, first ? acc[i][v] : Load(out) + acc[i][v]);
    }
  }
}

using FewRowsDirectFn = void (*)(const RowSource& source, int64_t k0, int64_t kc, int64_t n,
                                 const Unit* a, float* c, int64_t ldc, bool first);

struct FewRowsDirectChoice {
  FewRowsDirectFn wide;
  FewRowsDirectFn one;
  int vectors;
};

template <typename Policy, DType kRound, int kRows>
LOWRANK_INLINE FewRowsDirectChoice PickFewRowsDirect(int64_t rows) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return PickFewRowsDirect<Policy, kRound, kRows - 1>(rows);
  }
  constexpr int kVectors = FewRowsDirectVectors<kRows>();
  return {FewRowsDirectTile<Policy, kRound, kRows, kVectors>,
          FewRowsDirectTile<Policy, kRound, kRows, 1>, kVectors};
}

template <typename Policy>
LOWRANK_INLINE FewRowsDirectChoice PickFewRowsDirect(int64_t rows, DType round_to) {
  if (Policy::kPairs || round_to == DType::kF32) {
    return PickFewRowsDirect<Policy, DType::kF32, kMR>(rows);
  }
  if (round_to == DType::kBF16) return PickFewRowsDirect<Policy, DType::kBF16, kMR>(rows);
  return PickFewRowsDirect<Policy, DType::kF16, kMR>(rows);
}

/// Does AccumulateFewRowsDirect take this product?
LOWRANK_INLINE bool TakesFewRowsDirect(int64_t rows, const RowSource& w) {
  return rows <= kMR && w.rows > 0 && FusedDirectDecode(w);
}

/// c [m1 - m0, n1 - n0] = dy · w over all of the summation index, where TakesFewRowsDirect() holds
/// and the chunk is all of the block's rows.
template <typename Policy>
LOWRANK_INLINE void AccumulateFewRowsDirect(Run& run, const PackedChunk& chunk, const RowSource& w,
                                            const Block& block, float* c) {
  const FewRowsDirectChoice choice = PickFewRowsDirect<Policy>(chunk.rows, w.round_to);
  for (int64_t k0 = 0; k0 < w.rows && !run.Stopped(); k0 += kKC) {
    const int64_t kc = Min(kKC, w.rows - k0);
    const Unit* a = chunk.At<Policy>(k0, 0, 0);
    for (int64_t k = k0 + kKC; k < Min(k0 + 2 * kKC, w.rows); ++k) {
      PrefetchRow(w, k, block.n0, block.n1 - block.n0);
    }
    for (int64_t n = block.n0; n < block.n1;) {
      const bool wide = n + choice.vectors * kVL <= block.n1;
      (wide ? choice.wide : choice.one)(w, k0, kc, n, a, c + n - block.n0, block.ldc(), k0 == 0);
      n += (wide ? choice.vectors : 1) * kVL;
    }
  }
}

}  // namespace lowrank::cpu::LOWRANK_ISA
