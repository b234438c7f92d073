/// Blocked products in the order of lanes (sum_order.h), for more rows of x than stored_dot.h
/// takes: the panels and tiles of gemm.h, with a lane's share of a span as the block.
///
/// Scratch     B strip: all lanes of a span for kStripBytes of columns, or two panels, of which one
///             is decoded beside the other's tiles (lane_panels.h); C tile as in gemm.h
/// Numerics    as gemm.h, with lanes for blocks; the same bits as row_dot.h
#pragma once

#include "native/cpu/kernels/lane_panels.h"
#include "native/cpu/kernels/stored_dot.h"

namespace lowrank::cpu::LOWRANK_ISA {

// Half of a 1 MiB L2: the strip is read once for every row panel.
constexpr int64_t kStripBytes = 512 << 10;

/// Columns [n0, n1) over the span of the summation index at k0.
struct Strip {
  int64_t n0, n1, k0;

  /// The one that follows it in a block, empty after the last; strips have at most `cols` columns.
  Strip Next(const Block& block, int64_t depth, int64_t cols) const {
    if (k0 + kSpan < depth) return {n0, n1, k0 + kSpan};
    return {n1, Min(n1 + cols, block.n1), 0};
  }
  int64_t cols() const { return n1 - n0; }
};

/// c [m1 - m0, n1 - n0] = x · wᵀ over all of the summation index and the last steps, for a chunk
/// that is packed by lanes. A panel of x goes through the lanes of a span one after another, so
/// that its tile of c stays in L1 while they are added up.
template <typename Policy>
LOWRANK_INLINE void AccumulateByLanes(Run& run, const Grid& grid, const Block& block,
                                      const PackedChunk& chunk, const RowSource& w,
                                      const LastSteps& last, float* c) {
  constexpr bool kDecodes = Policy::kPairs && !Policy::kTiles;
  using Decoder = std::conditional_t<kDecodes, LanePanels<true>, NoDecoder>;
  constexpr int64_t kStrip = kStripBytes / (Policy::Units(kSpan) * 4) / kNR * kNR;
  constexpr int64_t kUnits = kStrip / kNR * kVL * PanelStride(Policy::Units(kKC));
  // Then there are two strips of one panel in its place.
  static_assert(!kDecodes || kStrip >= 2 * kNR);
  const bool beside = kDecodes && block.m1 - block.m0 <= kBesideRows;
  const int64_t most_cols = beside ? kNR : kStrip;
  const int64_t ldc = block.ldc();
  const int64_t depth = chunk.order.depth;
  Unit* b = run.Get<Unit>(kBSlot, kUnits);
  if (b == nullptr) return;
  Unit* other = b + kUnits / 2;  // what the next strip is decoded to
  bool decoded = false;
  Strip strip = {block.n0, Min(block.n0 + most_cols, block.n1), 0};
  while (strip.cols() > 0 && !run.Stopped()) {
    const int64_t n0 = strip.n0, n1 = strip.n1, k0 = strip.k0;
    const int64_t length = chunk.order.Length(k0);
    const int64_t ku = Policy::Units(length);
    if (!decoded) DecodeSpan<Policy>(w, k0, length * kVL, n0, n1, b);
    const Strip next = strip.Next(block, depth, most_cols);
    Decoder decoder;
    int64_t every = 0;  // steps
    if constexpr (kDecodes) {
      if (beside && next.cols() == kNR && strip.cols() == kNR) {
        decoder = Decoder(w, next.k0, chunk.order.Length(next.k0) * kVL, next.n0, other);
        every = Max((block.panel1 - block.panel0) * kVL * ku / decoder.pieces(), 1);
      }
    }
    grid.rows.Each(block.panel0, block.panel1, [&](int64_t, int64_t m, int mr) {
      float* c_row = c + (m - block.m0) * ldc - block.n0;
      for (int64_t n = n0; n < n1; n += kNR) {
        const int64_t nr = PanelWidth(n, n1);
        const TileFn tile = PickTile<Policy, kMR>(mr, nr);
        const TileBlocks lanes = {ku, kVL, PanelStride(ku)};
        const Unit* a = chunk.At<Policy>(k0, m, mr);
        const Unit* columns = LanePanel(b, n - n0, 0, ku);
        bool done = false;
        if constexpr (kDecodes) {
          done = every != 0;
          if (done) {
            PickDecodingTile<Policy, kMR, Decoder>(mr)(&decoder, every, lanes, a, columns,
                                                       c_row + n, ldc, k0 == 0);
          }
        }
        if (!done) tile(lanes, a, columns, c_row + n, ldc, k0 == 0);
        if (k0 + kSpan < depth) continue;
        last.Add(m - block.m0, mr, n - block.n0, nr, c_row + n, ldc);
      }
    });
    strip = next;
    decoded = every != 0;
    if constexpr (kDecodes) {
      if (!decoded) continue;
      decoder.Finish();
      Unit* full = other;
      other = b;
      b = full;
    }
  }
}

}  // namespace lowrank::cpu::LOWRANK_ISA
