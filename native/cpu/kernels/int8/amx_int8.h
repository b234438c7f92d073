/// compute: 'int8' by the matrix unit: 4-bit weights whose rows are whole granules, and more than a
/// few rows of x. Sums of codes are exact, so the bits are those of tile_int8.h.
///
///   y[m, n] = sum over blocks of 64 of dot(codes of x, codes of w) · (scale of x · scale of w)
///
/// The depth of a tile is one block, and each block has its own scale. So C starts anew for each
/// block and is stored to memory as int32, from where vectors scale it and add it to the sum.
///
///   w   [n / 16][block][16 rows][16 units]      as in amx_rows.h; its scales [block][row]
///   x   [k / 512][m / 16][block]( codes [16 units][16] · correction [16] · scale [16] ), the A
///       panels of pack_int8.h, whose rows are the columns of tiles
///
/// Scratch    tiles of a strip of w and their scales; the sums of its steps, 32 rows by 32 columns
/// Budget     a block of a step: 64 cycles of products, 64 of stores of C and 64 of its sums, 256
///            vector operations in 128. Measured in L1: 150 for tiles with their stores and 155
///            for vectors, which hardly overlap (a block has about 560 micro-operations, as many as
///            can wait at a time): 430 operations per cycle, where VNNI has 256 and reaches two
///            thirds of it
#pragma once

#include "native/cpu/kernels/amx/gemm_amx.h"
#include "native/cpu/kernels/int8/int8_dot.h"
#include "native/cpu/kernels/int8/int8_panels.h"

namespace lowrank::cpu::LOWRANK_ISA {

// Rows of w whose codes are decoded together for more than one step of x. 128 KiB of tiles and a
// block of 512 rows of x, 288 KiB, fit L2 with the sums, 512 KiB.
constexpr int64_t kCodeStrip = 256;

// Fewer rows of x use int8_dot.h. A row costs a sixteenth of a tile of columns here: 1.4 ms for one
// row with 4096 x 4096 and 1.5 for 16. There one row takes 0.24, and 14 rows 0.8 on another core (2
// x 512 bits, Zen 5).
constexpr int64_t kLeastCodeColumns = kInt8DotRows + 1;

/// The 32 bytes of a granule as units: every group of eight codes twice, once for its high nibbles
/// and once for its low ones.
LOWRANK_INLINE VecU GroupsTwice(const uint8_t* bytes) {
#if defined(__AVX512F__)
  const __m512i groups =
      _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes)));
  const __m512i twice = _mm512_set_epi32(7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
  return reinterpret_cast<VecU>(_mm512_permutexvar_epi32(twice, groups));
#else
  uint32_t groups[kVL];
  for (int i = 0; i < kVL; ++i) std::memcpy(groups + i, bytes + i / 2 * 4, 4);
  return LoadU(groups);
#endif
}

/// Decodes columns [k0, k0 + kc) of one row of w as one row of tiles, and the scale of each block
/// to scales[block · pitch]. Prefetches the data `ahead` bytes after its codes.
LOWRANK_INLINE void DecodeCodeRow(const Int8Weight& weight, int64_t row, int64_t k0, int64_t kc,
                                  int64_t ahead, Unit* out, float* scales, int64_t pitch) {
  const QuantView& w = *weight.w;
  const VecU table = weight.table ^ (kWeightOffset * 0x01010101u);
  VecU shifts;
  for (int i = 0; i < kVL; ++i) shifts[i] = i % 2 == 0 ? 4 : 0;
  float scratch[kSpan / kGranule + 1];
  const ScaleRows scale = OneScales(w, row, 1, k0, kc, scratch);
  const uint8_t* codes = w.codes + (row * w.cols + k0) / 2;
  for (int64_t b = 0; b < kc / kGranule; ++b, codes += kGranule / 2, out += kTile) {
    if ((b & 1) == 0) __builtin_prefetch(codes + ahead, 0, 2);
    StoreU(out, LookupNibbles(table, GroupsTwice(codes) >> shifts));
    scales[b * pitch] = *scale.At(0, b) * weight.unit;
  }
}

/// Sums of `rows` rows of a step: += dots · (scale of x · scale of w), each operation rounded.
template <int kVectors>
LOWRANK_INLINE void AddScaled(const int32_t* dots, int64_t rows, const float* const (&x_scales)[2],
                              const float* w_scales, float* sums) {
  VecF scale[kVectors];
#pragma GCC unroll 2
  for (int v = 0; v < kVectors; ++v) scale[v] = Load(x_scales[v]);
#pragma GCC unroll 4
  for (int64_t n = 0; n < rows; ++n) {
    const VecF w_scale = Splat(w_scales[n]);
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      float* sum = sums + n * kStepRows + v * kVL;
      const VecI dot = reinterpret_cast<VecI>(LoadU(dots + n * kStepRows + v * kVL));
      Store(sum, Load(sum) + __builtin_convertvector(dot, VecF) * (scale[v] * w_scale));
    }
  }
}

/// The sums of a step [rows][cols] += w · x over `blocks` blocks: rows of w from `w` on, whose
/// scales are `pitch` apart between blocks, and up to two panels of x.
template <typename Session>
LOWRANK_INLINE void AddCodeStep(Session& session, const Unit* w, const float* w_scales,
                                int64_t pitch, int64_t rows, const Unit* const (&x)[2],
                                int64_t cols, int64_t blocks, float* sums) {
  alignas(64) int32_t dots[2][kStepRows * kStepRows];
  session.Shape(rows, CeilDiv(cols, kTileRows) * kTileRows);
  const auto add = [&](int64_t b) {
    const int64_t at = (b * kBlockUnits + kCodeUnits + 1) * kTileRows;
    const float* const x_scales[2] = {x[0] + at, x[1] + at};
    if (cols > kTileRows) {
      AddScaled<2>(dots[b & 1], rows, x_scales, w_scales + b * pitch, sums);
    } else {
      AddScaled<1>(dots[b & 1], rows, x_scales, w_scales + b * pitch, sums);
    }
  };
  for (int64_t b = 0; b < blocks; ++b) {
    session.Dots({w + b * kTile, kTileUnits, blocks * kTile, 0},
                 {x[0] + b * kBlockUnits * kTileRows, kTileRows, x[1] - x[0], 0}, dots[b & 1]);
    if (b > 0) add(b - 1);
  }
  add(blocks - 1);
}

/// c [m1 - m0, n1 - n0] = x · wᵀ over all of the summation index, for a chunk packed in columns.
template <typename Session>
LOWRANK_INLINE void AccumulateCodesByTiles(Run& run, const PackedChunk& chunk,
                                           const Int8Weight& weight, const Block& block, float* c) {
  const int64_t depth = chunk.order.depth;
  // Where panels of x start: a block of rows may start inside one.
  const int64_t first = block.m0 / kTileRows * kTileRows;
  const int64_t m_steps = CeilDiv(block.m1 - first, kStepRows);
  const int64_t most = m_steps == 1 ? kStepRows : kCodeStrip;
  const int64_t strip = Min(most, CeilDiv(block.n1 - block.n0, kStepRows) * kStepRows);
  const int64_t most_blocks = kDepth<Int8Policy> / kInt8Block;
  Unit* tiles = run.Get<Unit>(kBSlot, strip * most_blocks * (kTileUnits + 1));
  float* sums = run.Get<float>(kStageSlot, m_steps * strip * kStepRows);
  if (tiles == nullptr || sums == nullptr) return;
  float* scales = tiles + strip * most_blocks * kTileUnits;
  Session session;
  for (int64_t n = block.n0; n < block.n1 && !run.Stopped(); n += strip) {
    const int64_t rows = Min(strip, block.n1 - n);
    std::memset(sums, 0, static_cast<size_t>(m_steps * strip * kStepRows) * sizeof(float));
    for (int64_t k0 = 0; k0 < depth; k0 += kDepth<Int8Policy>) {
      const int64_t kc = Min(kDepth<Int8Policy>, depth - k0);
      const int64_t blocks = kc / kInt8Block;
      for (int64_t i = 0; i < rows; ++i) {
        Unit* row = tiles + i / kTileRows * blocks * kTile + i % kTileRows * kTileUnits;
        // The part of this row that follows the parts of the others.
        DecodeCodeRow(weight, n + i, k0, kc, kc / 2, row, scales + i, strip);
      }
      float* sum = sums;
      for (int64_t m = first; m < block.m1; m += kStepRows) {
        const Unit* x[2];
        for (int v = 0; v < 2; ++v) {
          const int64_t panel = Min(m / kTileRows + v, chunk.panels.count - 1);
          x[v] = CodeColumns(chunk, k0, panel);
        }
        for (int64_t i = 0; i < rows; i += kStepRows, sum += kStepRows * kStepRows) {
          const int64_t step_rows = Min(kStepRows, rows - i);
          const Unit* w = tiles + i / kTileRows * blocks * kTile;
          AddCodeStep(session, w, scales + i, strip, step_rows, x, block.m1 - m, blocks, sum);
          if (k0 + kc < depth) continue;
          StoreTurned(sum, step_rows, m, block.m0, Min(block.m1, m + kStepRows),
                      c + n + i - block.n0, block.ldc());
        }
      }
    }
  }
  session.End();
}

/// y = x · wᵀ with `compute: 'int8'` over 4-bit weights: c of one block and the last steps, with x
/// packed in the chunk. All routes give the same bits.
LOWRANK_INLINE void AccumulateInt8(Run& run, const Grid& grid, const Block& block,
                                   const PackedChunk& chunk, Route route, const RowSource& w,
                                   const Int8Weight& weight, const LastSteps& last, float* c) {
  const int64_t depth = chunk.order.depth;
  switch (route) {
    case Route::kCodeTiles:
      if constexpr (kHasTiles) AccumulateCodesByTiles<TileSession>(run, chunk, weight, block, c);
      AddLastSteps(grid, block, last, c);
      return;
    case Route::kCodeDots:
      AccumulateInt8Dots(run, chunk, weight, block, c);
      AddLastSteps(grid, block, last, c);
      return;
    case Route::kCodeStrips:
      AccumulateStrips<Int8Policy>(run, grid, block, depth, Int8Strips{chunk, w, weight}, last, c);
      return;
    default:
      Accumulate<Int8Policy>(run, grid, block, depth, ChunkOf<Int8Policy>{chunk, block},
                             Int8Columns{w, weight}, c, true, last);
  }
}

}  // namespace lowrank::cpu::LOWRANK_ISA
