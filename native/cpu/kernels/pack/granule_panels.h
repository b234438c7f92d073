/// B panels of a 4-bit weight for dx = dy · w, in one pass or in pieces small enough to interleave
/// with a register tile. A piece is one granule of the rows of one unit.
///
///   codes    rows of w in bitsandbytes' layout: 32 bytes per granule
///   out      panels of kNR columns in the order of lanes, PanelStride apart: [unit][column]
///
/// Look-ups and shifts run on pipes that the products of a tile leave free. But all pipes are fed
/// from one queue, which products fill, so decoding in longer runs between tiles is not hidden.
///
/// Budget     core of 2 x 256-bit multiply-adds, pairs, a piece of 128 weights: 16 cycles in one
///            pass with w in L3 (10 of operations: 2 products, 16 look-ups, shifts and logic), 35
///            with w out of cache in parallel with tiles that use L2, and 16 beside the steps of a
///            tile
#pragma once

#include "native/cpu/kernels/decode/granule.h"

namespace lowrank::cpu::LOWRANK_ISA {

// Columns that are packed at once.
constexpr int64_t kPanelColumns = 256;

/// Decodes a granule of a row of w, and, if pairs are multiplied, that of the next row, whose codes
/// are `apart` bytes further on (0: there is none), to panels `stride` apart.
template <bool kPairs, Granules kKind>
LOWRANK_INLINE void DecodePiece(const Table16& table, DType round_to, const uint8_t* codes,
                                int64_t apart, const float* scale, const float* other_scale,
                                const FactorLayout& layout, float* out, int64_t stride) {
  GranuleRows<kPairs, kKind> granule;
  granule.SetScales(table, round_to, scale, other_scale, layout, apart != 0);
  granule.SetCodes(codes, codes + apart);
#pragma GCC unroll 16
  for (int p = 0; p < kPlaces; ++p) {
    Store(out + p % kNV * kVL, granule.At(p));
    if (p % kNV == kNV - 1) out += stride;
  }
}

/// Prefetches the rows of the unit that comes kPrefetchRows after `row`.
template <bool kPairs>
LOWRANK_INLINE void PrefetchUnit(const RowSource& w, int64_t row, int64_t n0, int64_t cols) {
  PrefetchRow(w, row + kPrefetchRows, n0, cols);
  if (kPairs) PrefetchRow(w, row + 1 + kPrefetchRows, n0, cols);
}

/// Columns [n0, n0 + cols), whole granules, at most kPanelColumns; units are rows [k0, k0 + kc) of
/// w.
template <bool kPairs, Granules kKind>
static void DecodeGranules(const RowSource& source, int64_t k0, int64_t kc, int64_t n0,
                           int64_t cols, float* out) {
  const QuantView& w = *source.quant;
  constexpr int64_t kRows = kPairs ? 2 : 1;
  const int64_t stride = PanelStride(CeilDiv(kc, kRows));
  float scratch[FactorScratch(kRows, kPanelColumns / kGranule + 1)];
  for (int64_t row = k0; row < k0 + kc; row += kRows, out += kNR) {
    const uint8_t* codes = w.codes + (row * w.cols + n0) / 2;
    const bool two = kPairs && row + 1 < k0 + kc;
    const ScaleRows scales = ScalesOf(kKind, w, row, two ? 2 : 1, n0, cols, scratch);
    PrefetchUnit<kPairs>(source, row, n0, cols);
    float* panel = out;
    for (int64_t g = 0; g < cols / kGranule; ++g, panel += kGranule / kNR * stride) {
      DecodePiece<kPairs, kKind>(source.tables.nibbles, source.round_to, codes + g * kGranule / 2,
                                 two ? w.cols / 2 : 0, scales.At(0, g), scales.At(two ? 1 : 0, g),
                                 scales.layout, panel, stride);
    }
  }
}

/// Work that is interleaved with a tile keeps its state in memory only: state in registers would
/// make the tile spill.
template <typename Worker>
LOWRANK_INLINE Worker* OutOfRegisters(Worker* worker) {
  asm("" : "+r"(worker));
  return worker;
}

/// The same, piece by piece, where every granule has one scale.
template <bool kPairs>
class GranulePanels {
 public:
  GranulePanels() = default;
  GranulePanels(const RowSource& w, int64_t k0, int64_t kc, int64_t n0, int64_t cols, float* out)
      : table_(w.tables.nibbles),
        w_(w.quant),
        element_(k0 * w.cols + n0),
        rows_(kc),
        row_pieces_(cols / kGranule),
        pieces_(row_pieces_),
        out_(out),
        stride_(PanelStride(CeilDiv(kc, kRows))) {}
  int64_t pieces() const { return CeilDiv(rows_, kRows) * row_pieces_; }

  /// Decodes a piece, if one is left.
  LOWRANK_MEMBER_INLINE void Step() {
    if (rows_ > 0) OutOfRegisters(this)->Decode();
  }
  void Finish() {
    while (rows_ > 0) Step();
  }

 private:
  static constexpr int64_t kRows = kPairs ? 2 : 1;

  LOWRANK_MEMBER_INLINE void Decode() {
    const QuantView& w = *w_;
    const int64_t ahead = kPrefetchRows * w.cols / 2;
    const uint8_t* codes = w.codes + element_ / 2;
    __builtin_prefetch(codes + ahead, 0, 2);
    if (kPairs) __builtin_prefetch(codes + ahead + w.cols / 2, 0, 2);
    const bool two = kPairs && rows_ > 1;
    const GranuleScale scale_of(w);
    const float scale = scale_of(element_);
    const float other = scale_of(element_ + (two ? w.cols : 0));
    DecodePiece<kPairs, Granules::kOne>(table_, DType::kF32, codes, two ? w.cols / 2 : 0, &scale,
                                        &other, FactorLayout(), out_, stride_);
    element_ += kGranule;
    out_ += kGranule / kNR * stride_;
    if (--pieces_ == 0) NextRows();
  }
  LOWRANK_MEMBER_INLINE void NextRows() {
    pieces_ = row_pieces_;
    rows_ -= kRows;
    element_ += kRows * w_->cols - row_pieces_ * kGranule;
    out_ += kNR - row_pieces_ * (kGranule / kNR) * stride_;
    PrefetchScales(*w_, element_ + kPrefetchRows * w_->cols, 1);
    if (kPairs) PrefetchScales(*w_, element_ + (kPrefetchRows + 1) * w_->cols, 1);
  }

  Table16 table_;
  const QuantView* w_ = nullptr;
  int64_t element_ = 0;     // of the next piece
  int64_t rows_ = 0;        // left
  int64_t row_pieces_ = 0;  // of kRows rows
  int64_t pieces_ = 0;      // left of these rows
  float* out_ = nullptr;
  int64_t stride_ = 0;  // from panel to panel
};

}  // namespace lowrank::cpu::LOWRANK_ISA
