/// y = x · wᵀ strip by strip: all rows of x are multiplied by the panels of a few columns over a
/// span of the summation index, one block of it after another, so that a tile of C stays in L1
/// while its blocks are added up. By blocks of the summation index first, as in gemm.h, C comes
/// from L2 and goes back for each: 3 % of a product of 256 rows.
///
/// A source of strips defines:
///
///   kDecodes, Decoder      may the next strip be made during the tiles of this one, and by what
///   kStripSpan             maximum columns of w in a strip
///   Columns(), Units()     columns of a strip, and units of memory for strips
///   Blocks(k0, mr)         of the span at k0, for mr rows of x
///   Rows(k0, m, mr)        the panel of x at the first of them
///   Panel(b, n, blocks)    the panel of column n of the strip
///   Pack(strip, b)         makes a strip in one pass
///
/// and with kDecodes
///
///   Beside(rows)           is the next strip, of kNR columns, made during this one
///   Decoding(strip, b)     the object that makes it, piece by piece
#pragma once

#include "native/cpu/kernels/tile/gemm.h"

namespace lowrank::cpu::LOWRANK_ISA {

/// Columns [n0, n1) over the span of the summation index at k0.
struct Strip {
  int64_t n0, n1, k0;

  /// The strip after it in a block, empty after the last. Strips have at most `cols` columns and
  /// `span` of the summation index.
  Strip Next(const Block& block, int64_t depth, int64_t cols, int64_t span) const {
    if (k0 + span < depth) return {n0, n1, k0 + span};
    return {n1, Min(n1 + cols, block.n1), 0};
  }
  int64_t cols() const { return n1 - n0; }
};

/// c [m1 - m0, n1 - n0] = x · wᵀ over the whole summation index and the last steps.
template <typename Policy, typename Source>
static void AccumulateStrips(Run& run, const Grid& grid, const Block& block, int64_t depth,
                             const Source& source, const LastSteps& last, float* c) {
  using Decoder = typename Source::Decoder;
  bool beside = false;
  if constexpr (Source::kDecodes) beside = source.Beside(block.m1 - block.m0);
  const int64_t most_cols = beside ? kNR : source.Columns();
  const int64_t ldc = block.ldc();
  const int64_t units = source.Units();
  Unit* b = run.Get<Unit>(kBSlot, units);
  if (b == nullptr) return;
  Unit* other = b + units / 2;  // where the next strip is made
  bool made = false;
  Strip strip = {block.n0, Min(block.n0 + most_cols, block.n1), 0};
  while (strip.cols() > 0 && !run.Stopped()) {
    const int64_t n0 = strip.n0, n1 = strip.n1, k0 = strip.k0;
    if (!made) source.Pack(strip, b);
    const Strip next = strip.Next(block, depth, most_cols, Source::kStripSpan);
    Decoder decoder;
    int64_t every = 0;  // steps
    if constexpr (Source::kDecodes) {
      if (beside && next.cols() == kNR && strip.cols() == kNR) {
        const TileBlocks blocks = source.Blocks(k0, kMR);
        decoder = source.Decoding(next, other);
        every = Max((block.panel1 - block.panel0) * blocks.count * blocks.ku / decoder.pieces(), 1);
      }
    }
    grid.rows.Each(block.panel0, block.panel1, [&](int64_t, int64_t m, int mr) {
      float* c_row = c + (m - block.m0) * ldc - block.n0;
      const TileBlocks blocks = source.Blocks(k0, mr);
      const Unit* a = source.Rows(k0, m, mr);
      for (int64_t n = n0; n < n1; n += kNR) {
        const int64_t nr = PanelWidth(n, n1);
        const Unit* columns = source.Panel(b, n - n0, blocks);
        bool done = false;
        if constexpr (Source::kDecodes) {
          done = every != 0;
          if (done) {
            PickDecodingTile<Policy, kMR, Decoder>(mr)(&decoder, every, blocks, a, columns,
                                                       c_row + n, ldc, k0 == 0);
          }
        }
        if (!done) PickTile<Policy>(mr, nr)(blocks, a, columns, c_row + n, ldc, k0 == 0);
        if (k0 + Source::kStripSpan < depth) continue;
        last.Add(m - block.m0, mr, n - block.n0, nr, c_row + n, ldc);
      }
    });
    strip = next;
    made = every != 0;
    if constexpr (Source::kDecodes) {
      if (!made) continue;
      decoder.Finish();
      Unit* full = other;
      other = b;
      b = full;
    }
  }
}

}  // namespace lowrank::cpu::LOWRANK_ISA
