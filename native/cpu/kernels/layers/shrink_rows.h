/// The adapter's reduction over rows of x, or of dy:
///
///   out [rows, r] = factor · a · b,   b = lora_aᵀ [K, r] (forward) or lora_b [N, r] (backward)
///
/// Operands    a: rows as stored in memory, or widened to f32 by kKC of their elements if they are
///             gated, have a factor, are in f16, or in bf16 with r > kVL; b: kVL columns wide
///             panels of f32, for the whole summation index, packed once for all rows
/// Numerics    f32, in the natural order; sums over kKC are added in order: the bits of
///             register_tile.h over panels of the same rows
/// Budget      an element of a is one broadcast for one or kNV multiply-adds; two of bf16 are one
///             broadcast, a shift and a mask, which run in parallel with the multiply-adds
///
/// Nothing is packed for it: transposing kMR rows to an A panel took as long as the sums at r = 16
/// (docs/performance/adapters.md).
#pragma once

#include "native/cpu/kernels/isa/base_set.h"
#include "native/cpu/kernels/tile/gemm.h"

namespace lowrank::cpu::LOWRANK_ISA {

/// b as panels of kVL columns: those of one block of kKC of the summation index after another.
struct ShrinkColumns {
  float* data = nullptr;
  int64_t depth = 0;
  int64_t cols = 0;

  int64_t panels() const { return CeilDiv(cols, kVL); }
  float* At(int64_t k0, int64_t panel) const {
    return data + (k0 * panels() + panel * Min(kKC, depth - k0)) * kVL;
  }
};

/// Packs b by pack_b(k0, kc, n0, n1, out) of gemm.h. data is null if there is no memory.
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

/// One element of a unit at any address, in all lanes: of a pair the first along the summation
/// index, or the second.
template <typename Policy, int kHalf>
LOWRANK_INLINE VecF SplatElement(const void* unit) {
  uint32_t bits;
  std::memcpy(&bits, unit, 4);
  const VecU both = SplatU(bits);
  if constexpr (!Policy::kPairs) return reinterpret_cast<VecF>(both);
  return reinterpret_cast<VecF>(kHalf == 0 ? both << 16 : both & 0xffff0000u);
}

// Elements of a row between two updates of its pointers.
constexpr int kShrinkStep = kVL == 16 ? 8 : 4;

/// The element at `at` in all lanes.
template <typename Policy>
LOWRANK_INLINE VecF SplatOne(const char* at) {
  uint32_t bits = 0;
  std::memcpy(reinterpret_cast<char*>(&bits) + (Policy::kPairs ? 2 : 0), at,
              Policy::kPairs ? 2 : 4);
  return reinterpret_cast<VecF>(SplatU(bits));
}

/// acc += one element of each row, times its columns; panels of b are b_stride apart.
template <int kRows, int kVectors, typename ElementOf>
LOWRANK_INLINE void ShrinkStep(const ElementOf& element, const float* b, int64_t b_stride,
                               VecF (&acc)[kRows][kVectors]) {
  VecF columns[kVectors];
#pragma GCC unroll 2
  for (int v = 0; v < kVectors; ++v) columns[v] = Load(b + v * b_stride);
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
    const VecF value = element(i);
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) acc[i][v] = Fma(value, columns[v], acc[i][v]);
  }
}

/// c [kRows, kVectors · kVL] (+)= kc elements of rows that are `pitch` bytes apart, times b.
template <typename Policy, int kRows, int kVectors>
static void ShrinkTile(const char* rows, int64_t pitch, int64_t kc, const float* b, float* c,
                       int64_t ldc, bool first) {
  constexpr int kBytes = Policy::kPairs ? 2 : 4;
  // Three rows per pointer: each is an address that an instruction can encode.
  constexpr int kPointers = (kRows + 2) / 3;
  const char* third[kPointers];
#pragma GCC unroll 16
  for (int i = 0; i < kPointers; ++i) third[i] = rows + 3 * i * pitch;
  const int64_t b_stride = kc * kVL;
  VecF acc[kRows][kVectors] = {};
  int64_t k = 0;
  for (; k + kShrinkStep <= kc; k += kShrinkStep) {
#pragma GCC unroll 16
    for (int j = 0; j < kShrinkStep; j += Policy::kPairs ? 2 : 1, b += kVL) {
      const auto unit = [&](int i) { return third[i / 3] + i % 3 * pitch + j * kBytes; };
      ShrinkStep([&](int i) { return SplatElement<Policy, 0>(unit(i)); }, b, b_stride, acc);
      if constexpr (Policy::kPairs) {
        b += kVL;
        ShrinkStep([&](int i) { return SplatElement<Policy, 1>(unit(i)); }, b, b_stride, acc);
      }
    }
#pragma GCC unroll 16
    for (int i = 0; i < kPointers; ++i) third[i] += kShrinkStep * kBytes;
  }
  for (; k < kc; ++k, b += kVL) {
    ShrinkStep([&](int i) { return SplatOne<Policy>(rows + i * pitch + k * kBytes); }, b, b_stride,
               acc);
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      float* out = c + i * ldc + v * kVL;
      Store(out, first ? acc[i][v] : Load(out) + acc[i][v]);
    }
  }
}

template <typename Policy, int kVectors, int kRows = kMR>
LOWRANK_INLINE ShrinkTileFn PickShrinkTile(int rows) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return PickShrinkTile<Policy, kVectors, kRows - 1>(rows);
  }
  return ShrinkTile<Policy, kRows, kVectors>;
}

/// The tile of kNV vectors (`wide`), or of one, over rows of f32 or of bf16 (`pairs`, one vector
/// only).
static ShrinkTileFn FindShrinkTile(bool pairs, bool wide, int rows) {
  if constexpr (kHasBase) {
    return Base().tiles.shrink(pairs, wide, rows);
  } else {
    return wide    ? PickShrinkTile<F32Policy, kNV>(rows)
           : pairs ? PickShrinkTile<BF16Policy, 1>(rows)
                   : PickShrinkTile<F32Policy, 1>(rows);
  }
}

/// c [mr, r] (+)= rows [m0, m0 + mr) of a, mr <= kMR, times b, over kc elements from k0 on.
LOWRANK_INLINE void ShrinkPanel(const RowSource& a, int64_t m0, int mr, int64_t k0, int64_t kc,
                                const ShrinkColumns& b, float* c, int64_t ldc) {
  const DType dtype = a.dense->dtype;
  // With more columns than a vector, bf16 is widened once for all of them.
  const bool pairs = dtype == DType::kBF16 && b.panels() == 1;
  const bool stored = (pairs || dtype == DType::kF32) && a.AsStored(m0, mr);
  const int64_t bytes = stored && pairs ? 2 : 4;
  alignas(64) float widened[kMR][kKC];
  const char* rows = reinterpret_cast<const char*>(widened);
  if (stored) {
    rows = a.StoredRow(m0) + k0 * bytes;
  } else {
    for (int i = 0; i < mr; ++i) RowAsFloat(a, m0 + i, k0, kc, widened[i]);
  }
  for (int64_t v = 0; v < b.panels(); v += kNV) {
    const ShrinkTileFn tile = FindShrinkTile(bytes == 2, v + 1 < b.panels(), mr);
    tile(rows, (stored ? a.cols : kKC) * bytes, kc, b.At(k0, v), c + v * kVL, ldc, k0 == 0);
  }
}

/// c [block's rows, r] = rows of a, of which m0 is row 0 of the panels, times b; ldc is that of
/// whole vectors. All panels use the columns of b of one kKC at a time.
LOWRANK_INLINE void ShrinkRows(const RowSource& a, int64_t m0, const RowPanels& panels,
                               const Block& block, const ShrinkColumns& b, float* c, int64_t ldc) {
  for (int64_t k0 = 0; k0 < b.depth; k0 += kKC) {
    panels.Each(block.panel0, block.panel1, [&](int64_t, int64_t m, int mr) {
      ShrinkPanel(a, m0 + m, mr, k0, Min(kKC, b.depth - k0), b, c + (m - block.m0) * ldc, ldc);
    });
  }
}

}  // namespace lowrank::cpu::LOWRANK_ISA
