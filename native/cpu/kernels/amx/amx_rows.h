/// Operands of y = x · wᵀ for the matrix unit. Rows of w are A tiles, stored along the summation
/// index, and rows of x are the columns of B tiles. A packed weight is decoded row by row without a
/// transpose, and x is transposed once for all of w.
///
///   w   [n / 16][k / 32][16 rows][16 units]      1 KiB per tile, one after another
///   x   [m / 16][k / 32][16 units][16 columns], or fewer columns if there are fewer
///
/// Both are padded with zeros beyond the summation index.
#pragma once

#include "native/cpu/kernels/amx/amx_tile.h"
#include "native/cpu/kernels/decode/code_granules.h"

namespace lowrank::cpu::LOWRANK_ISA {

LOWRANK_INLINE int64_t TileGroups(int64_t depth) { return CeilDiv(depth, kTileDepth); }
/// Units of a row of x or w.
LOWRANK_INLINE int64_t TileRowUnits(int64_t depth) { return TileGroups(depth) * kTileUnits; }

/// Panels of kTileRows rows each.
LOWRANK_INLINE RowPanels TilePanels(int64_t rows) {
  const int64_t count = Max(CeilDiv(rows, kTileRows), 1);
  return {count * kTileRows, count};
}

/// Columns of a panel of x.
LOWRANK_INLINE int64_t TileWidth(int64_t rows_of_x) { return Min(rows_of_x, kTileRows); }

/// Both halves of each lane of unit `kUnit` of a granule. Only sets with 16 lanes hold a granule in
/// two vectors.
template <int kUnit, int... kHalf>
LOWRANK_INLINE VecP PairsOfUnit(VecP low, VecP high, std::integer_sequence<int, kHalf...>) {
  return __builtin_shufflevector(
      low, high, (ElementOf(kHalf / 2, (2 * kUnit + kHalf % 2) % kPlaces) % (4 * kVL))...);
}

/// Reorders a granule of bf16 as its codes are decoded: both vectors of pairs, lane by lane.
LOWRANK_INLINE void SpreadPairs(const char* in, char* out) {
  typedef uint16_t Halves __attribute__((vector_size(kVL * 4), aligned(1), may_alias));
  using Sequence = std::make_integer_sequence<int, 2 * kVL>;
  const VecP low = *reinterpret_cast<const Halves*>(in);
  const VecP high = *reinterpret_cast<const Halves*>(in + sizeof(VecP));
  *reinterpret_cast<Halves*>(out) = PairsOfUnit<0>(low, high, Sequence());
  *reinterpret_cast<Halves*>(out + sizeof(VecP)) = PairsOfUnit<1>(low, high, Sequence());
}

/// Packs rows [m0, m0 + rows) of x, at most `width`, into a panel of `width` columns. `spread`:
/// granules are in the order of DecodeTileRow.
static void PackTileColumns(const RowSource& x, int64_t m0, int64_t rows, bool spread,
                            int64_t width, Unit* out) {
  const int count = static_cast<int>(rows);
  const int64_t whole = x.cols / kTileDepth * kTileUnits;
  const Unit* end = out + TileRowUnits(x.cols) * width;
  std::memset(out + whole * width, 0,
              static_cast<size_t>(end - (out + whole * width)) * sizeof(Unit));
  const bool direct = x.dense->dtype == DType::kBF16 && x.AsStored(m0, count);
  for (int64_t k = 0; k < x.cols; k += kKC) {
    const int64_t kc = Min(kKC, x.cols - k);
    alignas(64) float buffer[kTileRows][kKC];
    const char* src = reinterpret_cast<const char*>(buffer);
    int64_t pitch = sizeof(buffer[0]);
    if (direct) {
      pitch = x.cols * 2;
      src = x.StoredRow(m0) + k * 2;
    } else {
      for (int i = 0; i < count; ++i) {
        RowAsFloat(x, m0 + i, k, kc, buffer[i]);
        NarrowToBF16(buffer[i], kc, reinterpret_cast<uint16_t*>(buffer[i]));
      }
    }
    Unit* to = out + k / 2 * width;
    if (spread) {
      for (int i = 0; i < count; ++i) {
        char* row = reinterpret_cast<char*>(buffer[i]);
        for (int64_t at = 0; at < kc * 2; at += kGranule * 2) {
          SpreadPairs(src + i * pitch + at, row + at);
        }
      }
      src = reinterpret_cast<const char*>(buffer);
      pitch = sizeof(buffer[0]);
    }
    TransposeRows<BF16Policy>(src, pitch, count, kc, to, width, to + BF16Policy::Units(kc) * width);
  }
}

#if defined(__AVX512BF16__)
/// Decodes columns [k0, k0 + kc), whole granules, of one row of w into one row of tiles from `out`
/// on. Prefetches as many codes, and their scales, from element `next` of w on.
template <Granules kKind>
LOWRANK_INLINE void DecodeTileRow(const RowSource& w, int64_t row, int64_t k0, int64_t kc,
                                  int64_t next, Unit* out) {
  const Table16 codebook = w.tables.nibbles;
  GranuleDecoder<true, kKind> decoder;
  const uint8_t* codes = w.quant->codes + (row * w.cols + k0) / 2;
  const int64_t ahead = (next - row * w.cols - k0) / 2;
  for (int64_t k = 0; k < kc; k += kSpan) {
    const int64_t span = Min(kSpan, kc - k);
    PrefetchScales(*w.quant, next + k, span);
    float scratch[FactorScratch(1, kSpan / kGranule + 1)];
    const ScaleRows scales = ScalesOf(kKind, *w.quant, row, 1, k0 + k, span, scratch);
    for (int64_t g = 0; g < span / kGranule; ++g) {
      if ((g & 1) == 0) __builtin_prefetch(codes + ahead, 0, 2);
      decoder.SetScale(codebook, scales.At(0, g), scales.layout, DType::kF32);
      Store(out, decoder.At(codes, 0));
      Store(out + kTile, decoder.At(codes, 1));
      codes += kGranule / 2;
      out += 2 * kTile;
    }
  }
}

/// The same for codes that are not nibbles.
static void CodeTileRow(const RowSource& w, int64_t row, int64_t k0, int64_t kc, Unit* out) {
  float scratch[FactorScratch(1, kSpan / kGranule + 1)];
  for (int64_t k = 0; k < kc; k += kSpan) {
    const int64_t span = Min(kSpan, kc - k);
    const ScaleRows scales = PartScales(*w.quant, row, 1, k0 + k, span, scratch);
    DecodeCodeGranules<CodeOrder::kPairs>(*w.quant, w.tables, row, k0 + k, span / kGranule, scales,
                                          0, kPrefetchRows, w.round_to,
                                          {out + k / kTileDepth * kTile, kTile});
  }
}
#endif

/// The same for any row, rounded to bf16.
static void CopyTileRow(const RowSource& w, int64_t row, int64_t k0, int64_t kc, Unit* out) {
  const bool direct = w.dense != nullptr && w.dense->dtype == DType::kBF16 && w.AsStored();
  for (int64_t k = 0; k < kc; k += kKC) {
    const int64_t count = Min(kKC, kc - k);
    alignas(64) float buffer[kKC];
    const char* src = reinterpret_cast<const char*>(buffer);
    if (direct) {
      src = static_cast<const char*>(w.dense->data) + (row * w.cols + k0 + k) * 2;
    } else {
      RowAsFloat(w, row, k0 + k, count, buffer);
      NarrowToBF16(buffer, count, reinterpret_cast<uint16_t*>(buffer));
    }
    for (int64_t at = 0; at < count; at += kTileDepth, out += kTile) {
      if (at + kTileDepth <= count) {
        Store(out, Load(src + at * 2));
      } else {
        std::memset(out, 0, kTileUnits * sizeof(Unit));
        std::memcpy(out, src + at * 2, static_cast<size_t>(count - at) * 2);
      }
    }
  }
}

/// Rows [n0, n0 + rows) of w, columns [k0, k0 + kc), as tiles of all their groups. k0 is a multiple
/// of kKC. after(i) runs when i of the rows are done.
template <typename AfterFn>
LOWRANK_INLINE void PackTileRows(const RowSource& w, int64_t n0, int64_t rows, int64_t k0,
                                 int64_t kc, Unit* out, const AfterFn& after) {
  const int64_t groups = TileGroups(kc);
  RowSource unrounded = w;
  unrounded.round_to = DType::kF32;  // NarrowToBF16() rounds, and must round only once
  [[maybe_unused]] const Granules kind = GranulesOf(w);
  for (int64_t i = 0; i < rows; after(++i)) {
    Unit* row = out + i / kTileRows * groups * kTile + i % kTileRows * kTileUnits;
#if defined(__AVX512BF16__)
    if (kind != Granules::kNone) {
      // Some rows ahead, or what follows the parts of the other rows.
      const int64_t n = n0 + i;
      const bool whole = kc == w.cols;
      const bool last = k0 + kc == w.cols;
      const int64_t next = whole  ? (n + kPrefetchRows) * w.cols
                           : last ? (n + kStepRows) * w.cols
                                  : n * w.cols + k0 + kc;
      if (kind == Granules::kCodes) {
        CodeTileRow(w, n, k0, kc, row);
      } else {
        WithGranules(kind, [&](auto known) { DecodeTileRow<known()>(w, n, k0, kc, next, row); });
      }
      continue;
    }
#endif
    PrefetchRow(w, n0 + i + kPrefetchRows, k0, kc);
    CopyTileRow(unrounded, n0 + i, k0, kc, row);
  }
}

}  // namespace lowrank::cpu::LOWRANK_ISA
