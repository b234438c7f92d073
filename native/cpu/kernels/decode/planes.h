/// Decodes planar weights (native/host_device/planes.h): any width of codes, any grid of scales.
///
/// Numerics   as PlaneValue, then one rounding to the activations' dtype: the same bits on every
///            instruction set and device
/// Steps      for up to kPlaneRun elements of a row: codes to bytes, the factors of each element
///            (one look-up for all elements of an entry), then level, difference and product by
///            vectors
#pragma once

#include "native/cpu/kernels/decode/rows.h"

namespace lowrank::cpu::LOWRANK_ISA {

// Elements at once: their codes and three factors of each take 1.7 KiB of stack. A multiple of the
// four vectors that Levels looks up.
constexpr int64_t kPlaneRun = 128;

/// codes[i] of elements [k, k + count) of a row, one a byte. `end` is where the weight's codes end.
static inline void SpreadPlane(const uint8_t* row, const uint8_t* end, int bits, int64_t k,
                               int64_t count, uint8_t* codes) {
  int64_t i = 0;
  if (bits == 8) {
    std::memcpy(codes, row + k, static_cast<size_t>(count));
    return;
  }
  // Eight codes take `bits` bytes.
  const uint32_t mask = (1u << bits) - 1;
  for (; i < count && (k + i) % 8 != 0; ++i) {
    codes[i] = static_cast<uint8_t>(PlaneCode(row, bits, k + i));
  }
  const uint8_t* from = row + (k + i) / 8 * bits;
  for (; i + 8 <= count && from + 8 <= end; i += 8, from += bits) {
    uint64_t word;
    std::memcpy(&word, from, 8);
    // The first of a byte's two nibbles is the high one.
    if (bits == 4) word = (word & 0x0f0f0f0full) << 4 | (word >> 4 & 0x0f0f0f0full);
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) codes[i + j] = static_cast<uint8_t>(word >> (j * bits) & mask);
  }
  for (; i < count; ++i) codes[i] = static_cast<uint8_t>(PlaneCode(row, bits, k + i));
}

/// Factors of elements from (n, k) on, each in an array of its own.
struct PlaneRun {
  alignas(64) float scale[kPlaneRun];
  alignas(64) float zero[kPlaneRun];
  alignas(64) float min[kPlaneRun];

  void Fill(const QuantView& w, int64_t n, int64_t k, int64_t count) {
    const Planes& planes = w.planes;
    for (int64_t i = 0; i < count;) {
      const int64_t entry = PlaneEntry(planes, w.cols, n, k + i);
      const int64_t end = Min(count, i + Left(w, n, k + i));
      const PlaneFactors factors = FactorsOf(planes, entry);
      for (; i < end; ++i) {
        scale[i] = factors.scale;
        zero[i] = factors.zero;
        min[i] = factors.min;
      }
    }
  }

 private:
  /// Elements of the row from (n, k) on that share an entry.
  static int64_t Left(const QuantView& w, int64_t n, int64_t k) {
    const Planes& planes = w.planes;
    switch (planes.grid) {
      case PlaneGrid::kTiles:
        return planes.grid_span - k % planes.grid_span;
      case PlaneGrid::kFlat:
        return planes.grid_span - ((n + planes.first_row) * w.cols + k) % planes.grid_span;
      default:
        return 1;
    }
  }
};

/// Elements [k, k + count) of row n, at most kPlaneRun.
static inline void DecodePlaneRun(const QuantView& w, const LevelTables& tables, DType round_to,
                                  int64_t n, int64_t k, int64_t count, float* out) {
  const Planes& planes = w.planes;
  alignas(64) uint8_t codes[kPlaneRun] = {};
  SpreadPlane(w.codes + n * planes.row_bytes, w.codes + w.code_bytes(), planes.bits, k, count,
              codes);
  alignas(64) float values[kPlaneRun];
  if (w.format->levels == 16) {
    for (int64_t i = 0; i < count; i += kVL) {
      Store(values + i, Lookup(tables.nibbles, WidenBytes(codes + i)));
    }
  } else {
    WithLevels(tables.bytes, [&](auto bytes) __attribute__((always_inline)) {
      const Levels<bytes()> levels(tables.bytes);
      for (int64_t i = 0; i < count; i += 4 * kVL) {
        VecF four[4];
        levels.Run(codes + i, four);
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) Store(values + i + j * kVL, four[j]);
      }
    });
  }
  PlaneRun run;
  run.Fill(w, n, k, count);
  const bool zeros = planes.zero != nullptr;
  const bool mins = planes.min.data != nullptr;
  for (int64_t i = 0; i < count; i += kVL) {
    VecF value = Load(values + i);
    if (zeros) value = value - Load(run.zero + i);
    value = value * Load(run.scale + i);
    if (mins) value = value - Load(run.min + i);
    Store(values + i, RoundTo(round_to, value));
  }
  std::memcpy(out, values, static_cast<size_t>(count) * 4);
}

static void DecodePlanes(const QuantView& w, const LevelTables& tables, DType round_to,
                         int64_t begin, int64_t count, float* out) {
  int64_t n = begin / w.cols;
  int64_t k = begin % w.cols;
  while (count > 0) {
    const int64_t run = Min(count, Min(kPlaneRun, w.cols - k));
    DecodePlaneRun(w, tables, round_to, n, k, run, out);
    out += run;
    count -= run;
    k += run;
    if (k == w.cols) {
      k = 0;
      ++n;
    }
  }
}

}  // namespace lowrank::cpu::LOWRANK_ISA
