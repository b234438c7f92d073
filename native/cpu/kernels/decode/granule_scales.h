/// The factors of granules (sum_order.h), decoded to f32 for some rows and a span of columns, and
/// how they turn levels into weights.
///
///   kOne          [row][granule]                                      one scale
///   other kinds   [row][scales · zeros · minima][granule][part]       1, 2 or 4 parts
///
/// Numerics   (level - zero) · scale - min, each operation rounded by itself. A zero or minimum
/// that
///            a weight lacks is +0, which changes no bit of the result
///            (native/host_device/planes.h)
#pragma once

#include "native/cpu/kernels/tile/sum_order.h"

namespace lowrank::cpu::LOWRANK_ISA {

// Floats of scratch for a granule, and in all: a vector may be read past the last part.
constexpr int64_t kMostFactors = 3 * 4;
constexpr int64_t kFactorSlack = 4;
constexpr int64_t FactorScratch(int64_t rows, int64_t granules) {
  return rows * granules * kMostFactors + kFactorSlack;
}

/// Where the factors of a granule lie from its first scale on.
struct FactorLayout {
  int64_t zeros = 0;
  int64_t mins = 0;
  int last = 0;  // part
};

/// Scales of the granules of some rows of w, from a column on that starts a granule.
struct ScaleRows {
  const float* data;  // of row r, granule g: data[r · pitch + Index(g)]
  int64_t pitch;
  int64_t first;  // granules of its block before the column
  int shift;      // granules per block, as a power of two
  FactorLayout layout;

  LOWRANK_MEMBER_INLINE int64_t Index(int64_t g) const {
    return ((g + first) >> shift) * (layout.last + 1);
  }
  LOWRANK_MEMBER_INLINE const float* At(int64_t row, int64_t g) const {
    return data + row * pitch + Index(g);
  }
};

/// The same where every granule has one scale.
LOWRANK_INLINE ScaleRows OneScales(const QuantView& w, int64_t row, int64_t rows, int64_t k0,
                                   int64_t span, float* out) {
  const int shift = __builtin_ctzll(static_cast<uint64_t>(w.blocksize));
  const int64_t row_blocks = w.cols >> shift;
  const int64_t first = row * row_blocks + (k0 >> shift);
  ScaleRows scales = {};
  scales.first = (k0 & (w.blocksize - 1)) / kGranule;
  scales.shift = shift - __builtin_ctzll(static_cast<uint64_t>(kGranule));
  if (w.absmax != nullptr) {
    scales.data = w.absmax + first;
    scales.pitch = row_blocks;
    return scales;
  }
  const int64_t count = ((k0 + span - 1) >> shift) - (k0 >> shift) + 1;
  scales.data = out;
  scales.pitch = count;
  for (int64_t i = 0; i < rows; ++i) ScaleRun(w, first + i * row_blocks, count, out + i * count);
  return scales;
}

/// Numbers of entries, one for each part of `part` columns: out[i] is that of the entry in which
/// column i · part lies, `into` columns after the start of the first. fill(count, to) gives those
/// of the entries in sequence.
template <typename FillFn>
LOWRANK_INLINE void SpreadEntries(int64_t grid_span, int64_t into, int64_t part, int64_t parts,
                                  float* out, const FillFn& fill) {
  if (grid_span == part) {
    fill(parts, out);
    return;
  }
  alignas(64) float entries[kSpan / (kGranule / 4) + 1];
  fill((into + parts * part - 1) / grid_span + 1, entries);
  const float* entry = entries;
  for (int64_t i = 0, left = grid_span - into; i < parts; ++entry, left += grid_span) {
    for (; i < parts && left > 0; ++i, left -= part) out[i] = *entry;
  }
}

/// How the scales of a weight lie along a row.
struct EntrySpans {
  bool flat;        // rows one after another
  int64_t columns;  // of an entry
  int shift;        // granules of an entry, as a power of two; -1: it is none, or rows differ

  explicit EntrySpans(const QuantView& w)
      : flat(!w.planar() || w.planes.grid == PlaneGrid::kFlat),
        columns(w.planar() ? w.planes.grid_span : w.blocksize),
        shift(-1) {
    if (!flat && columns >= w.cols) {
      columns = w.cols;
      shift = 62;  // one entry a row
    } else if (columns % kGranule == 0 && (columns & (columns - 1)) == 0 &&
               (!flat || w.cols % columns == 0)) {
      shift = __builtin_ctzll(static_cast<uint64_t>(columns / kGranule));
    }
  }
};

/// And for granules of the other kinds.
static __attribute__((noinline)) ScaleRows PartScales(const QuantView& w, int64_t row, int64_t rows,
                                                      int64_t k0, int64_t span, float* out) {
  const Planes& planes = w.planes;
  const bool affine = w.planar() && IsAffine(planes);
  const int64_t parts = GranuleParts(w);
  ScaleRows scales = {};
  const EntrySpans spans(w);
  // Columns for which one number is stored, and how far k0 is into the first of them.
  int64_t part = kGranule / parts;
  int64_t before = 0;
  if (spans.shift >= 0) {
    part = spans.columns;
    before = k0 % part;
    scales.shift = spans.shift;
    scales.first = before / kGranule;
  }
  const int64_t count = (before + span - 1) / part + 1;
  scales.data = out;
  scales.pitch = affine ? 3 * count : count;
  scales.layout = {count, 2 * count, static_cast<int>(parts) - 1};
  for (int64_t i = 0; i < rows; ++i) {
    float* to = out + i * scales.pitch;
    if (!w.planar()) {
      const int64_t at = ((row + i) * w.cols + k0) / w.blocksize;
      SpreadEntries(spans.columns, ((row + i) * w.cols + k0) % spans.columns, part, count, to,
                    [&](int64_t n, float* target) { ScaleRun(w, at, n, target); });
      continue;
    }
    const int64_t position = spans.flat ? (row + i + planes.first_row) * w.cols + k0 : k0;
    const int64_t at = PlaneEntry(planes, w.cols, row + i, k0);
    const auto spread = [&](float* numbers, const auto& fill) {
      SpreadEntries(spans.columns, position % spans.columns, part, count, numbers, fill);
    };
    spread(to, [&](int64_t n, float* target) { PlaneScales(planes.scale, at, n, target); });
    if (!affine) continue;
    if (planes.zero != nullptr) {
      spread(to + count, [&](int64_t n, float* target) {
        PlaneNumbers(planes.zero, planes.zero_type, nullptr, at, n, target);
      });
    } else {
      std::memset(to + count, 0, static_cast<size_t>(count) * sizeof(float));
    }
    if (planes.min.data != nullptr) {
      spread(to + 2 * count,
             [&](int64_t n, float* target) { PlaneScales(planes.min, at, n, target); });
    } else {
      std::memset(to + 2 * count, 0, static_cast<size_t>(count) * sizeof(float));
    }
  }
  return scales;
}

/// The scales of rows [row, row + rows), columns [k0, k0 + span), whole granules: in the weight, or
/// decoded to `out`, which has room for FactorScratch(rows, granules + 1).
LOWRANK_INLINE ScaleRows ScalesOf(Granules kind, const QuantView& w, int64_t row, int64_t rows,
                                  int64_t k0, int64_t span, float* out) {
  return kind == Granules::kOne ? OneScales(w, row, rows, k0, span, out)
                                : PartScales(w, row, rows, k0, span, out);
}

constexpr bool IsAffine(Granules kind) { return kind == Granules::kHalvesAffine; }

/// The weights of levels that all have one part's factors.
template <Granules kKind>
LOWRANK_INLINE VecF ApplyFactors(VecF levels, const float* scale, const FactorLayout& layout) {
  if constexpr (!IsAffine(kKind)) return levels * Splat(*scale);
  return (levels - Splat(scale[layout.zeros])) * Splat(*scale) - Splat(scale[layout.mins]);
}

/// Factors of the lanes of a vector.
template <bool kAffine>
struct LaneFactors {
  VecF scale;
  LOWRANK_MEMBER_INLINE VecF Apply(VecF levels) const { return levels * scale; }
};
template <>
struct LaneFactors<true> {
  VecF scale, zero, min;
  LOWRANK_MEMBER_INLINE VecF Apply(VecF levels) const { return (levels - zero) * scale - min; }
};

/// Calls body with a constant kind; `kind` is not kNone.
template <typename Body>
LOWRANK_INLINE auto WithGranules(Granules kind, const Body& body) {
  switch (kind) {
    case Granules::kHalves:
      return body(std::integral_constant<Granules, Granules::kHalves>());
    case Granules::kHalvesAffine:
      return body(std::integral_constant<Granules, Granules::kHalvesAffine>());
    case Granules::kQuarters:
      return body(std::integral_constant<Granules, Granules::kQuarters>());
    default:
      return body(std::integral_constant<Granules, Granules::kOne>());
  }
}

}  // namespace lowrank::cpu::LOWRANK_ISA
