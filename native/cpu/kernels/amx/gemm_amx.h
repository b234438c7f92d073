/// y = x · dequant(w)ᵀ by the matrix unit, for any number of rows of x.
///
/// A strip of rows of w is decoded to tiles and multiplied by all rows of x, two panels at a time.
/// A step, 32 rows of w by 32 of x, stays in the tiles for the whole summation index, and is
/// transposed when it is stored. Up to 32 rows of x are a single step: then the strip is cut along
/// the summation index as well, so that its tiles are read back from L1.
///
/// Scratch    tiles of a strip, kTileStripBytes; for up to 32 rows of x, those of two parts of it
/// Numerics   amx_tile.h, groups in ascending order; a row of y has the same bits in any batch
/// Budget     4096 x 4096 NF4 on one core: 0.15 ms of products at M = 1 and 2.6 at M = 256 if they
///            alone limited it. Measured: 0.8 ms of decoding, codes from L3, and 0.3 of products
///            at M = 1, of which 0.2 overlap; from M = 256 on 40 % of the unit's peak or less,
///            because panels of x come from L2 or L3 (docs/performance/amx.md)
#pragma once

#include "native/cpu/kernels/tile/gemm.h"

namespace lowrank::cpu::LOWRANK_ISA {

// Half of a 2 MiB L2, the size on processors with the unit; the rest holds the panels of x for a
// step.
constexpr int64_t kTileStripBytes = 1 << 20;
// Groups in a part: two buffers of 32 rows, 32 KiB, of a 48 KiB L1.
constexpr int64_t kPartGroups = 8;

/// Stores a step's C, rows of w by rows of x, to rows [m0, m1) of y's block, whose row 0 is m0. Row
/// m of x is column m - first.
LOWRANK_INLINE void StoreTurned(const float* tiles, int64_t rows_of_w, int64_t first, int64_t m0,
                                int64_t m1, float* c, int64_t ldc) {
  for (int64_t n = 0; n < rows_of_w; n += kVL) {
    for (int64_t m = first; m < m1; m += kVL) {
      VecF r[kVL];
#pragma GCC unroll 16
      for (int i = 0; i < kVL; ++i) r[i] = Load(tiles + (n + i) * kStepRows + m - first);
      Transpose(r);
      if (m >= m0 && m + kVL <= m1) {
#pragma GCC unroll 16
        for (int i = 0; i < kVL; ++i) Store(c + (m + i - m0) * ldc + n, r[i]);
        continue;
      }
      float turned[kVL][kVL];
#pragma GCC unroll 16
      for (int i = 0; i < kVL; ++i) Store(turned[i], r[i]);
      for (int64_t i = Max(m0 - m, 0); i < Min(kVL, m1 - m); ++i) {
        Store(c + (m + i - m0) * ldc + n, Load(turned[i]));
      }
    }
  }
}

/// Rows of w as tiles, and how far their products with x have progressed.
struct TileStrip {
  const Unit* tiles = nullptr;
  int64_t n = 0;
  int64_t rows = 0;
  int64_t group0 = 0;  // of the summation index
  int64_t groups = 0;
  int64_t done = 0;
};

/// Up to 32 rows of x: one step. C stays in the tiles while a strip is cut along the summation
/// index. The products of one part run in parallel with the decoding of the next.
template <typename Session>
LOWRANK_INLINE void AccumulateOneStep(Run& run, const PackedChunk& chunk, const RowSource& w,
                                      const Block& block, int64_t first, float* c) {
  const int64_t depth = chunk.order.depth;
  const int64_t groups = TileGroups(depth);
  const int64_t part = Min(kPartGroups, groups);
  Unit* buffers = run.Get<Unit>(kBSlot, 2 * kStepRows * part * kTileUnits);
  if (buffers == nullptr) return;
  const Unit* x = chunk.data + first * groups * kTileUnits;
  const int64_t width = TileWidth(chunk.rows);
  Session session;
  alignas(64) float turned[kStepRows * kStepRows] = {};
  TileStrip strip;
  const auto advance = [&](int64_t end) {
    if (end <= strip.done) return;
    if (strip.group0 == 0 && strip.done == 0) {
      session.Shape(strip.rows, block.m1 - first);
      session.Zero();
    }
    session.Add({strip.tiles + strip.done * kTile, kTileUnits, strip.groups * kTile, kTile},
                {x + (strip.group0 + strip.done) * kTileUnits * width, width, groups * kTile,
                 kTileUnits * width},
                end - strip.done);
    strip.done = end;
  };
  const auto finish = [&] {
    advance(strip.groups);
    if (strip.rows == 0 || strip.group0 + strip.groups < groups) return;
    session.Store(turned, kStepRows);
    StoreTurned(turned, strip.rows, first, block.m0, block.m1, c + strip.n - block.n0, block.ldc());
  };
  int64_t parts = 0;
  for (int64_t n = block.n0; n < block.n1 && !run.Stopped(); n += kStepRows) {
    const int64_t rows = Min(kStepRows, block.n1 - n);
    for (int64_t g = 0; g < groups; g += part, ++parts) {
      const int64_t here = Min(part, groups - g);
      Unit* tiles = buffers + (parts & 1) * (kStepRows * part * kTileUnits);
      PackTileRows(w, n, rows, g * kTileDepth, Min(here * kTileDepth, depth - g * kTileDepth),
                   tiles, [&](int64_t i) { advance(i * strip.groups / rows); });
      finish();
      strip = {tiles, n, rows, g, here, 0};
    }
  }
  finish();
  session.End();
}

/// c [m1 - m0, n1 - n0] = x · wᵀ over all of the summation index, for a chunk packed in columns.
template <typename Session>
LOWRANK_INLINE void AccumulateByTiles(Run& run, const PackedChunk& chunk, const RowSource& w,
                                      const Block& block, float* c) {
  const int64_t depth = chunk.order.depth;
  const int64_t groups = TileGroups(depth);
  if (groups == 0) std::memset(c, 0, static_cast<size_t>(block.c_elems()) * sizeof(float));
  if (groups == 0) return;
  // Where panels of x start: a block of rows may start inside one.
  const int64_t first = block.m0 / kTileRows * kTileRows;
  if (block.m1 - first <= kStepRows) {
    AccumulateOneStep<Session>(run, chunk, w, block, first, c);
    return;
  }
  const int64_t row_units = groups * kTileUnits;
  const int64_t wanted = kTileStripBytes / (row_units * static_cast<int64_t>(sizeof(Unit)));
  const int64_t strip =
      Min(Max(wanted / kStepRows, 1), CeilDiv(block.n1 - block.n0, kStepRows)) * kStepRows;
  Unit* tiles = run.Get<Unit>(kBSlot, strip * row_units);
  if (tiles == nullptr) return;
  Session session;
  alignas(64) float turned[kStepRows * kStepRows] = {};
  for (int64_t n = block.n0; n < block.n1 && !run.Stopped(); n += strip) {
    const int64_t rows = Min(strip, block.n1 - n);
    PackTileRows(w, n, rows, 0, depth, tiles, [](int64_t) {});
    for (int64_t m = first; m < block.m1; m += kStepRows) {
      for (int64_t i = 0; i < rows; i += kStepRows) {
        const int64_t step_rows = Min(kStepRows, rows - i);
        session.Shape(step_rows, block.m1 - m);
        session.Zero();
        session.Add({tiles + i * row_units, kTileUnits, groups * kTile, kTile},
                    {chunk.data + m * row_units, kTileUnits, groups * kTile, kTile}, groups);
        session.Store(turned, kStepRows);
        StoreTurned(turned, step_rows, m, block.m0, Min(block.m1, m + kStepRows),
                    c + n + i - block.n0, block.ldc());
      }
    }
  }
  session.End();
}

}  // namespace lowrank::cpu::LOWRANK_ISA
