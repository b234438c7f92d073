/// Operands of `compute: 'int8'` in the panels and tiles of gemm.h, for more rows of x than
/// int8_dot.h takes: rows of x, and B panels (pack_int8.h) of a 4-bit weight whose blocks have one
/// scale each. kVL rows of w are transposed in registers, a few words of eight codes at a time, and
/// looked up there.
///
///   w        rows of codes as stored
///   panels   [panel of kNR rows]( header, [block]( codes [kCodeUnits][kNR] · scale [kNR] ) )
///
/// Transposing codes through memory and reading scales one by one, as pack_int8.h does for any
/// weight, takes twice as long.
///
/// Budget     VNNI, kVL rows by a block of 64: 32 loads of 16 bytes, 24 of them inserts, 16
///            shuffles, 8 shifts, 16 look-ups (without VBMI also 16 masks), 16 stores, and 8
///            operations for its scales: 66 cycles measured on a core of 2 x 512 bits, where a row
///            of x has 8 cycles of products
#pragma once

#include "native/cpu/kernels/dot/row_dot.h"
#include "native/cpu/kernels/tile/strips.h"

namespace lowrank::cpu::LOWRANK_ISA {

/// The block of the summation index at k0 in a panel of columns for the matrix unit (amx_int8.h).
LOWRANK_INLINE Unit* CodeColumns(const PackedChunk& chunk, int64_t k0, int64_t panel) {
  const int64_t length = Min(kDepth<Int8Policy>, chunk.order.depth - k0);
  return chunk.data + kTileRows * (chunk.panels.count * Int8Policy::Units(k0) +
                                   panel * Int8Policy::Units(length));
}

/// Quantises and packs panels [panel0, panel1) of rows that start at m0 of `x`.
LOWRANK_INLINE void PackInt8Panels(const RowSource& x, int64_t m0, int64_t panel0, int64_t panel1,
                                   const PackedChunk& chunk) {
  const int64_t depth = chunk.order.depth;
  chunk.panels.Each(panel0, panel1, [&](int64_t, int64_t m, int mr) {
    for (int64_t k0 = 0; k0 < depth; k0 += kDepth<Int8Policy>) {
      const int64_t kc = Min(kDepth<Int8Policy>, depth - k0);
      if (ByColumns(chunk.route)) {
        const int rows = static_cast<int>(Min(mr, chunk.rows - m));
        PackInt8Rows(x, m0 + m, rows, mr, k0, kc, CodeColumns(chunk, k0, m / kTileRows));
      } else {
        PackInt8Rows(x, m0 + m, mr, mr, k0, kc, chunk.At<Int8Policy>(k0, m, mr));
      }
    }
  });
}

constexpr int kBlockWords = static_cast<int>(kInt8Block) / kGroup;
// Words of eight codes that are transposed together: as few as possible, because sums need
// registers.
constexpr int kTurnedWords = kVL > 8 ? 4 : kBlockWords;

/// The next kWords words of each row, transposed: words[i][lane].
template <int kWords>
LOWRANK_INLINE void TurnWords(RowCursor& rows, VecF (&words)[kWords]) {
  if constexpr (kWords == 4) {
    LoadTransposed(rows, words);
  } else {
#pragma GCC unroll 2
    for (int j = 0; j < kWords; j += kVL) {
      VecF r[kVL];
#pragma GCC unroll 16
      for (int i = 0; i < kVL; ++i) r[i] = Load(rows.At(i) + j * 4);
      Transpose(r);
#pragma GCC unroll 16
      for (int i = 0; i < kVL; ++i) words[j + i] = r[i];
    }
  }
  rows.Step(kWords * 4);
}

/// Calls take(unit) for each unit of the next block of kVL rows, one row per lane.
template <typename Take>
LOWRANK_INLINE void TurnBlock(RowCursor& rows, VecU table, const Take& take) {
#pragma GCC unroll 2
  for (int word = 0; word < kBlockWords; word += kTurnedWords) {
    VecF words[kTurnedWords];
    TurnWords(rows, words);
#pragma GCC unroll 8
    for (int g = 0; g < kTurnedWords; ++g) {
      VecU values[2];
      LookUpGroup(table, reinterpret_cast<VecU>(words[g]), values);
      EachUnit(values[0], take);
      EachUnit(values[1], take);
    }
  }
}

/// out[block · stride + lane] = the scale of each block of rows [n, n + kVL), columns [k0, k0 +
/// span).
LOWRANK_INLINE void TurnScales(const Int8Weight& weight, int64_t n, int64_t k0, int64_t span,
                               float* out, int64_t stride) {
  alignas(64) float scratch[kVL * (kSpan / kGranule + 1)];
  const ScaleRows scales = OneScales(*weight.w, n, kVL, k0, span, scratch);
  const VecF unit = Splat(weight.unit);
  const int64_t blocks = span / kInt8Block;
  // For scale i of each row.
  const auto store = [&](int64_t i, VecF scale) {
    const int64_t begin = Max((i << scales.shift) - scales.first, 0);
    const int64_t end = Min(((i + 1) << scales.shift) - scales.first, blocks);
    for (int64_t b = begin; b < end; ++b) Store(out + b * stride, scale * unit);
  };
  const int64_t count = scales.Index(blocks - 1) + 1;
  for (int64_t i = 0; i < count;) {
    if (kVL > 8 && count >= 4) {
      i = Min(i, count - 4);  // the last ones again, overlapping others
      RowCursor rows(scales.data + i, scales.pitch * 4);
      VecF r[4];
      LoadTransposed(rows, r);
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) store(i + j, r[j]);
      i += 4;
    } else {
      VecF scale;
      for (int l = 0; l < kVL; ++l) scale[l] = scales.data[l * scales.pitch + i];
      store(i, scale);
      ++i;
    }
  }
}

/// kVL rows of w from `row` on, columns [k0, k0 + kc), as a vector of columns of a B panel.
static void TurnInt8(const Int8Weight& weight, int64_t row, int64_t k0, int64_t kc, float* out) {
  const QuantView& w = *weight.w;
  constexpr int64_t kStride = (kCodeUnits + 1) * kNR;
  TurnScales(weight, row, k0, kc, out + kCodeUnits * kNR, kStride);
  AskScales(w, row, kVL, kNR, kNR, k0, 1);
  const VecU table = weight.table;
  RowCursor rows(w.codes + (row * w.cols + k0) / 2, w.cols / 2);
  // The same rows of the next panel.
  const int64_t ahead = kNR * w.cols / 2;
  for (int64_t block = 0; block < kc / kInt8Block; ++block) {
    if (block % 2 == 0) AskRows(rows, ahead);  // a line has two blocks
    TurnBlock(rows, table, [&](VecU unit) __attribute__((always_inline)) {
      StoreU(out, unit);
      out += kNR;
    });
    out += kNR;  // scales
  }
}

/// Strips (strips.h) of one panel, block after block of kDepth, which are in L1 with their sums.
/// Decoding them in parallel with the tiles of the previous strip is no faster.
struct Int8Strips {
  static constexpr bool kDecodes = false;
  using Decoder = NoDecoder;
  static constexpr int64_t kStripSpan = kDepth<Int8Policy>;

  const PackedChunk& chunk;
  const RowSource& w;
  const Int8Weight& weight;

  int64_t Columns() const { return kNR; }
  int64_t Units() const { return PanelStride(PanelUnits<Int8Policy>(kStripSpan)); }
  TileBlocks Blocks(int64_t k0, int64_t) const { return {Int8Policy::Units(Span(k0))}; }
  const Unit* Rows(int64_t k0, int64_t m, int mr) const { return chunk.At<Int8Policy>(k0, m, mr); }
  const Unit* Panel(Unit* b, int64_t, const TileBlocks&) const { return b; }
  void Pack(const Strip& strip, Unit* b) const {
    if (strip.cols() < kNR) {
      Int8Columns{w, weight}(strip.k0, Span(strip.k0), strip.n0, strip.n1, b);
      return;
    }
    std::memcpy(b, &weight.segments, sizeof(weight.segments));
    for (int64_t v = 0; v < kNR; v += kVL) {
      TurnInt8(weight, strip.n0 + v, strip.k0, Span(strip.k0), b + kPanelHeader + v);
    }
  }

 private:
  int64_t Span(int64_t k0) const { return Min(kStripSpan, chunk.order.depth - k0); }
};

}  // namespace lowrank::cpu::LOWRANK_ISA
