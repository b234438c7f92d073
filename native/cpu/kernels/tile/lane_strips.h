/// Products in the order of lanes (sum_order.h), for more rows of x than stored_dot.h takes: strips
/// (strips.h) of all lanes of a span, with one lane's part of it as the block.
///
/// Scratch     B strip: all lanes of a span for kStripBytes of columns, or two panels, of which one
///             is decoded in parallel with the other's tiles (lane_panels.h); C tile as in gemm.h
/// Numerics    as gemm.h, with lanes as blocks; the same bits as row_dot.h
#pragma once

#include "native/cpu/kernels/dot/stored_dot.h"
#include "native/cpu/kernels/pack/lane_panels.h"
#include "native/cpu/kernels/tile/strips.h"

namespace lowrank::cpu::LOWRANK_ISA {

// Half of a 1 MiB L2: the strip is read once per row panel.
constexpr int64_t kStripBytes = 512 << 10;

/// For a weight whose chunk of x is packed by lanes.
template <typename Policy>
struct LaneStrips {
  static constexpr bool kDecodes = Policy::kPairs && !Policy::kTiles;
  using Decoder = std::conditional_t<kDecodes, LanePanels<true>, NoDecoder>;
  static constexpr int64_t kStripSpan = kSpan;
  static constexpr int64_t kStrip = kStripBytes / (Policy::Units(kSpan) * 4) / kNR * kNR;
  // Two strips of one panel replace one strip of the same total size.
  static_assert(!kDecodes || kStrip >= 2 * kNR);

  const PackedChunk& chunk;
  const RowSource& w;

  int64_t Columns() const { return kStrip; }
  int64_t Units() const { return kStrip / kNR * kVL * PanelStride(Policy::Units(kKC)); }
  bool Beside(int64_t rows) const { return rows <= kBesideRows && WholeGranules(w); }
  TileBlocks Blocks(int64_t k0, int64_t mr) const {
    const int64_t ku = Policy::Units(chunk.order.Length(k0));
    return {ku, kVL, mr * ku, PanelStride(ku)};
  }
  const Unit* Rows(int64_t k0, int64_t m, int mr) const { return chunk.At<Policy>(k0, m, mr); }
  const Unit* Panel(Unit* b, int64_t n, const TileBlocks& blocks) const {
    return LanePanel(b, n, 0, blocks.ku);
  }
  void Pack(const Strip& strip, Unit* b) const {
    DecodeSpan<Policy>(w, strip.k0, chunk.order.Length(strip.k0) * kVL, strip.n0, strip.n1, b);
  }
  Decoder Decoding(const Strip& strip, Unit* b) const {
    return Decoder(w, strip.k0, chunk.order.Length(strip.k0) * kVL, strip.n0, b);
  }
};

}  // namespace lowrank::cpu::LOWRANK_ISA
