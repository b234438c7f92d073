/// The adapter's reduction over rows that are packed for the base product:
///
///   out [rows, r] = factor · a · b,   b = lora_aᵀ [K, r] (forward) or lora_b [N, r] (backward)
///
/// Operands    a: the A panels of a chunk (gemm.h), in either order of sums; b: kVL columns wide
///             panels of f32, for all of the summation index, packed once for all rows
/// Numerics    f32, in the natural order in blocks of kKC whatever order the panels are packed in:
///             the bits of gemm.h's tiles over rows of their own. bf16 pairs are widened here
///
/// Packing rows again for it would cost more than the sums: at r = 16 they are 16 multiply-adds an
/// element.
#pragma once

#include "native/cpu/kernels/gemm.h"

namespace lowrank::cpu::LOWRANK_ISA {

/// b as panels of kVL columns: those of a block of kKC of the summation index one after another.
struct ShrinkColumns {
  float* data = nullptr;
  int64_t depth = 0;
  int64_t cols = 0;

  int64_t panels() const { return CeilDiv(cols, kVL); }
  float* At(int64_t k0, int64_t panel) const {
    return data + (k0 * panels() + panel * Min(kKC, depth - k0)) * kVL;
  }
};

/// Packs b by pack_b(k0, kc, n0, n1, out) of gemm.h; data is null where there is no memory.
template <typename PackBFn>
LOWRANK_INLINE ShrinkColumns PackShrinkColumns(Run& run, int64_t depth, int64_t cols,
                                               const PackBFn& pack_b) {
  ShrinkColumns b = {nullptr, depth, cols};
  b.data = run.Get<float>(kShrinkSlot, depth * b.panels() * kVL);
  if (b.data == nullptr) return b;
  run.ForEach(CeilDiv(depth, kKC), depth * cols, [&](int64_t task) {
    const int64_t k0 = task * kKC;
    for (int64_t n = 0; n < cols; n += kVL) {
      pack_b(k0, Min(kKC, depth - k0), n, Min(n + kVL, cols), b.At(k0, n / kVL));
    }
  });
  return b;
}

/// One element of a unit in all lanes: of a pair the first along the summation index, or the
/// second.
template <typename Policy, int kHalf>
LOWRANK_INLINE VecF SplatElement(const Unit* unit) {
  if constexpr (!Policy::kPairs) return Splat(*unit);
  uint32_t pair;
  std::memcpy(&pair, unit, 4);
  const VecU both = SplatU(pair);
  return reinterpret_cast<VecF>(kHalf == 0 ? both << 16 : both & 0xffff0000u);
}

template <typename Policy, int kHalf, int kRows>
LOWRANK_INLINE void ShrinkStep(const Unit* a, const float* b, VecF (&acc)[kRows]) {
  const VecF columns = Load(b);
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
    acc[i] = Fma(SplatElement<Policy, kHalf>(a + i), columns, acc[i]);
  }
}

/// Group g of a granule in the order of its elements, where sum_order.h has put them: four places
/// in each of two lanes, or eight in one. Lanes are `lane` units apart.
template <typename Policy, int kRows, int... kElement>
LOWRANK_INLINE void ShrinkGroup(const Unit* granule, int g, int64_t lane, const float* b,
                                VecF (&acc)[kRows], std::integer_sequence<int, kElement...>) {
  constexpr int kPlacesAUnit = Policy::kPairs ? 2 : 1;
  const Unit* first = granule + g % kVL * lane + g / kVL * kGroup / kPlacesAUnit * kRows;
  const Unit* parts[2] = {first, first + (kVL == 16 ? 8 * lane : 4 / kPlacesAUnit * kRows)};
  (ShrinkStep<Policy, PlaceInGroup(kElement) % kPlacesAUnit>(
       parts[PlaceInGroup(kElement) / 4] + PlaceInGroup(kElement) % 4 / kPlacesAUnit * kRows,
       b + kElement * kVL, acc),
   ...);
}

using ShrinkTileFn = void (*)(const PackedChunk& chunk, int64_t m, int64_t k0, int64_t kc,
                              const float* b, float* c, int64_t ldc, bool first);

/// c [kRows, kVL] (+)= the panel of kRows rows from m on, columns [k0, k0 + kc), times b.
template <typename Policy, int kRows>
static void ShrinkTile(const PackedChunk& chunk, int64_t m, int64_t k0, int64_t kc, const float* b,
                       float* c, int64_t ldc, bool first) {
  VecF acc[kRows] = {};
  if (chunk.order.by_lanes) {
    const int64_t span = k0 / kSpan * kSpan;
    const int64_t lane = Policy::Units(chunk.order.Length(k0)) * kRows;
    const Unit* granule =
        chunk.At<Policy>(span, m, kRows) + Policy::Units((k0 - span) / kVL) * kRows;
    for (int64_t k = 0; k < kc; k += kGranule, granule += Policy::Units(kPlaces) * kRows) {
      for (int g = 0; g < kGranule / kGroup; ++g, b += kGroup * kVL) {
        ShrinkGroup<Policy>(granule, g, lane, b, acc, std::make_integer_sequence<int, kGroup>());
      }
    }
  } else {
    const Unit* a = chunk.At<Policy>(k0, m, kRows);
    for (int64_t k = 0; k < kc; ++k, a += kRows, b += kVL) {
      ShrinkStep<Policy, 0>(a, b, acc);
      if (!Policy::kPairs || ++k == kc) continue;
      b += kVL;
      ShrinkStep<Policy, 1>(a, b, acc);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
    Store(c + i * ldc, first ? acc[i] : Load(c + i * ldc) + acc[i]);
  }
}

template <typename Policy, int kRows>
LOWRANK_INLINE ShrinkTileFn PickShrinkTile(int rows) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return PickShrinkTile<Policy, kRows - 1>(rows);
  }
  return ShrinkTile<Policy, kRows>;
}

/// c [m1 - m0, r] = a · b of one block of rows; ldc is that of whole vectors.
template <typename Policy>
LOWRANK_INLINE void ShrinkPanels(const PackedChunk& chunk, const Block& block,
                                 const ShrinkColumns& b, float* c, int64_t ldc) {
  for (int64_t k0 = 0; k0 < b.depth; k0 += kKC) {
    for (int64_t v = 0; v < b.panels(); ++v) {
      chunk.panels.Each(block.panel0, block.panel1, [&](int64_t, int64_t m, int mr) {
        PickShrinkTile<Policy, kMR>(mr)(chunk, m, k0, Min(kKC, b.depth - k0), b.At(k0, v),
                                        c + (m - block.m0) * ldc + v * kVL, ldc, k0 == 0);
      });
    }
  }
}

}  // namespace lowrank::cpu::LOWRANK_ISA
