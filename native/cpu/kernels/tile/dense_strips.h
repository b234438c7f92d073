/// y = x · wᵀ over a w whose rows are units as stored, dense or int8 codes (row_codes.h), for many
/// rows of x: strips (strips.h) of one panel of columns. The next panel is transposed in parallel
/// with the tiles of this one.
///
///   w        [N, K] row-major: 64 bytes of kRows rows a piece
///   panels   [block][unit][column], blocks of kDepth
///
/// In one pass, transposing 16 x 256 values takes 85 cycles and waits for memory. A panel of them
/// has 256 products of vectors for 18 rows of x. Tiles leave no registers for a transpose of 16 x
/// 16, but enough for one of 4 x 4: 14 instructions for 16 words.
///
/// Numerics   the natural order (sum_order.h)
/// Budget     a piece of 64 words, core of 2 x 256-bit multiply-adds: 64 instructions, of which 32
///            use the two permutation pipes. For 256 rows of x pieces take 2 % of the time; what
///            they replace took 5
#pragma once

#include "native/cpu/kernels/int8/row_codes.h"
#include "native/cpu/kernels/tile/strips.h"

namespace lowrank::cpu::LOWRANK_ISA {

// Where it was measured. Tiles of 28 sums leave time for pieces.
constexpr bool kTurnsBeside = kVL == 16;
// With fewer row panels of x, the products are finished before the next panel of w is transposed.
// Codes have a quarter of the bytes to transpose.
template <typename Policy>
constexpr int64_t kLeastTurnPanels = Policy::kCodes ? 2 : 4;

/// A panel of w, piece by piece.
class TurnedPanel {
 public:
  TurnedPanel() = default;
  /// kNR rows of w from `from` on, `pitch` bytes apart, `units` of each in blocks of block_units.
  TurnedPanel(const char* from, int64_t pitch, int64_t units, int64_t block_units, Unit* out)
      : from_(from),
        pitch_(pitch),
        block_units_(block_units),
        block_left_(block_units),
        left_(units / kUnits * (kNR / kRows)),
        out_(out) {}
  int64_t pieces() const { return left_; }

  /// Transposes a piece, if one is left.
  LOWRANK_MEMBER_INLINE void Step() {
    if (left_ != 0) OutOfRegisters(this)->Turn();
  }
  void Finish() {
    while (left_ != 0) Step();
  }

 private:
  typedef float Four __attribute__((vector_size(16), aligned(4), may_alias));
  static constexpr int kRows = 4;
  static constexpr int64_t kUnits = 16;  // a line
  static constexpr int64_t kLine = 64;
  // Lines of a row; each is 8 pieces of a panel.
  static constexpr int64_t kAhead = 4 * kLine;

  LOWRANK_MEMBER_INLINE void Turn() {
    const char* from = from_;
#pragma GCC unroll 4
    for (int64_t u = 0; u < kUnits; u += 4) {
      const auto row = [&](int i) {
        return *reinterpret_cast<const Four*>(from + i * pitch_ + u * 4);
      };
      const auto store = [&](int64_t unit, Four words) {
        *reinterpret_cast<Four*>(out_ + (u + unit) * kNR) = words;
      };
      const Four low01 = __builtin_shufflevector(row(0), row(1), 0, 4, 1, 5);
      const Four high01 = __builtin_shufflevector(row(0), row(1), 2, 6, 3, 7);
      const Four low23 = __builtin_shufflevector(row(2), row(3), 0, 4, 1, 5);
      const Four high23 = __builtin_shufflevector(row(2), row(3), 2, 6, 3, 7);
      store(0, __builtin_shufflevector(low01, low23, 0, 1, 4, 5));
      store(1, __builtin_shufflevector(low01, low23, 2, 3, 6, 7));
      store(2, __builtin_shufflevector(high01, high23, 0, 1, 4, 5));
      store(3, __builtin_shufflevector(high01, high23, 2, 3, 6, 7));
    }
    for (int i = 0; i < kRows; ++i) __builtin_prefetch(from + i * pitch_ + kAhead, 0, 2);
    --left_;
    from_ += kRows * pitch_;
    out_ += kRows;
    if (--row_pieces_ != 0) return;
    row_pieces_ = kNR / kRows;
    from_ += kLine - kNR * pitch_;
    out_ += kUnits * kNR - kNR;
    block_left_ -= kUnits;
    if (block_left_ != 0) return;
    block_left_ = block_units_;
    out_ += PanelStride(block_units_) - block_units_ * kNR;
  }

  const char* from_ = nullptr;
  int64_t pitch_ = 0;
  int64_t block_units_ = 0;
  int64_t block_left_ = 0;            // units
  int64_t row_pieces_ = kNR / kRows;  // left of these units
  int64_t left_ = 0;                  // pieces
  Unit* out_ = nullptr;
};

/// For a chunk of x in the natural order.
template <typename Policy>
struct DenseStrips {
  static constexpr bool kDecodes = true;
  using Decoder = TurnedPanel;
  static constexpr int64_t kBlock = kDepth<Policy>;
  static constexpr int64_t kBlockUnits = Policy::Units(kBlock);
  // Two panels of f32 are half of a 1 MiB L2.
  static constexpr int64_t kStripSpan = (Policy::kCodes ? 4 : 8) * kBlock;
  static constexpr int64_t kBytes = Policy::kCodes ? 1 : Policy::kPairs ? 2 : 4;

  const PackedChunk& chunk;
  const RowSource& w;

  int64_t Columns() const { return kNR; }
  int64_t Units() const { return 2 * (Span(0) / kBlock) * PanelStride(kBlockUnits); }
  bool Beside(int64_t) const { return true; }
  TileBlocks Blocks(int64_t k0, int64_t) const {
    return {kBlockUnits, Span(k0) / kBlock, chunk.rows * kBlockUnits, PanelStride(kBlockUnits)};
  }
  const Unit* Rows(int64_t k0, int64_t m, int mr) const { return chunk.At<Policy>(k0, m, mr); }
  const Unit* Panel(Unit* b, int64_t, const TileBlocks&) const { return b; }
  void Pack(const Strip& strip, Unit* b) const {
    for (int64_t k = 0; k < Span(strip.k0); k += kBlock, b += PanelStride(kBlockUnits)) {
      if constexpr (Policy::kCodes) {
        RowCodeColumns{w}(strip.k0 + k, kBlock, strip.n0, strip.n1, b);
      } else {
        PackBTransposed<Policy>(w, strip.k0 + k, kBlock, strip.n0, strip.n1, b);
      }
    }
  }
  Decoder Decoding(const Strip& strip, Unit* b) const {
    const void* rows = w.dense != nullptr ? w.dense->data : w.quant->codes;
    return Decoder(static_cast<const char*>(rows) + (strip.n0 * w.cols + strip.k0) * kBytes,
                   w.cols * kBytes, Policy::Units(Span(strip.k0)), kBlockUnits, b);
  }

 private:
  int64_t Span(int64_t k0) const { return Min(kStripSpan, chunk.order.depth - k0); }
};

/// Are rows of w, as stored, blocks of units?
template <typename Policy>
LOWRANK_INLINE bool TurnsRows(const RowSource& w, int64_t depth) {
  const bool units = Policy::kCodes ? kWeightOffset != 0 : AreUnits<Policy>(w);
  return kTurnsBeside && units && depth > 0 && depth % kDepth<Policy> == 0;
}

/// c = x · wᵀ of one block if TurnsRows() holds and the chunk is not packed for dots. Blocks with
/// few panels of x use `columns`, which packs w.
template <typename Policy, typename Columns>
LOWRANK_INLINE void AccumulateDenseRows(Run& run, const Grid& grid, const Block& block,
                                        const PackedChunk& chunk, const RowSource& w,
                                        const Columns& columns, bool strips, const LastSteps& last,
                                        float* c) {
  const int64_t depth = chunk.order.depth;
  if constexpr (kTurnsBeside) {
    if (strips && block.panel1 - block.panel0 >= kLeastTurnPanels<Policy>) {
      AccumulateStrips<Policy>(run, grid, block, depth, DenseStrips<Policy>{chunk, w}, last, c);
      return;
    }
  }
  Accumulate<Policy>(run, grid, block, depth, ChunkOf<Policy>{chunk, block}, columns, c, true,
                     last);
}

}  // namespace lowrank::cpu::LOWRANK_ISA
