/// Decodes packed weights straight into B panels: the whole weight is never in memory, and the
/// panel is written once.
///
///   transposed (y = x · wᵀ)   lanes are kVL rows of w. Their codes are transposed as 32-bit words,
///                             eight or four codes each, so a step along k is one table look-up
///                             (levels.h: a quarter of one) and one product for kVL rows
///   direct (dx = dy · w)      lanes are kVL columns of one row
///
/// Numerics   codebook[code] · scale rounded to f32, then once more to the activations' dtype
/// Needs      rows of whole bytes and, if transposed with 8 bits, whole words. If a row of w does
///            not start with a block, each lane's scale changes at another column (UnevenScales;
///            direct: in the middle of a vector, if K is not a multiple of 16). Other K take the
///            row-wise path of pack.h.
#pragma once

#include "native/cpu/kernels/decode/granule_scales.h"

namespace lowrank::cpu::LOWRANK_ISA {

// Number of rows by which packing prefetches: about 100 ns of decoding.
constexpr int64_t kPrefetchRows = 24;

/// By rows of w. A set without byte look-ups gains nothing by transposing codes first.
LOWRANK_INLINE bool DecodesTurned(const RowSource& source) {
  if (source.quant == nullptr || source.quant->planar()) return false;
  if (source.quant->format->bits == 4) return source.cols % 2 == 0;
  return source.tables.bytes.by_bytes && source.cols % 4 == 0;
}

/// By columns.
LOWRANK_INLINE bool DecodesDirect(const RowSource& source) {
  return source.quant != nullptr && !source.quant->planar() &&
         (source.quant->format->bits == 8 || source.cols % 2 == 0);
}

/// Scales of rows [row, row + rows) for columns [k0, k0 + 8 groups) if every row starts with a
/// block, as scales[group / per_scale][lane]. Returns per_scale, the number of groups that share
/// one.
LOWRANK_INLINE int64_t GatherScales(const QuantView& w, int64_t row, int rows, int64_t k0,
                                    int64_t groups, float* scales) {
  const int shift = __builtin_ctzll(static_cast<uint64_t>(w.blocksize));
  const int64_t per_scale = Min(w.blocksize, kKC) / kGroup;
  for (int i = 0; i < kVL; ++i) {
    const int64_t begin = (row + Min(i, rows - 1)) * w.cols + k0;
    for (int64_t s = 0; s * per_scale < groups; ++s) {
      scales[s * kVL + i] = BlockScale(w, (begin + s * per_scale * kGroup) >> shift);
    }
  }
  return per_scale;
}

/// Scales of rows that do not start with blocks. At a column each lane is in one of two blocks,
/// counted from the block in which its row starts. The position of that start decides which.
struct UnevenScales {
  int shift;   // a block has 2^shift pairs of columns
  VecU start;  // pairs of the first block before the first column
  alignas(64) float scales[kKC / 32 + 2][kVL];

  UnevenScales(const QuantView& w, int64_t row, int rows, int64_t k0, int64_t kc)
      : shift(__builtin_ctzll(static_cast<uint64_t>(w.blocksize)) - 1), start{} {
    const int64_t blocks = CeilDiv(kc, w.blocksize) + 1;
    for (int i = 0; i < kVL; ++i) {
      const int64_t begin = (row + Min(i, rows - 1)) * w.cols + k0;
      const int64_t last = (begin + kc - 1) >> (shift + 1);
      start[i] = static_cast<uint32_t>((begin & (w.blocksize - 1)) / 2);
      for (int64_t q = 0; q < blocks; ++q) {
        scales[q][i] = BlockScale(w, Min((begin >> (shift + 1)) + q, last));
      }
    }
  }
  /// The scales of columns 2 pair and 2 pair + 1.
  LOWRANK_MEMBER_INLINE VecF At(int64_t pair) const {
    const float* here = scales[pair >> shift];
    const int64_t into = pair & ((int64_t{1} << shift) - 1);
    const VecU left = SplatU(static_cast<uint32_t>((int64_t{1} << shift) - into));
    return start >= left ? Load(here + kVL) : Load(here);
  }
};

/// codes[word][lane], little-endian words of four bytes from column k0 on, of kVL rows from `row`
/// on; the last row stands for those past `rows`. Rows are whole bytes, at most kMostDepth / 8
/// words. The content of a word past the end of a row is undefined.
static __attribute__((noinline)) void TransposeCodes(const QuantView& w, int64_t row, int rows,
                                                     int64_t k0, int64_t groups, uint32_t* codes) {
  const int per_byte = w.format->bits == 4 ? 2 : 1;
  int64_t pitch = w.cols / per_byte;
  const uint8_t* src = w.codes + row * pitch + k0 / per_byte;
  const int64_t left =
      static_cast<int64_t>(w.code_bytes()) - (row + rows - 1) * pitch - k0 / per_byte;
  uint8_t copied[kVL][kMostDepth / 2];
  if (left < groups * 4) {  // the last word of the last row ends after the weight
    for (int i = 0; i < rows; ++i) {
      std::memcpy(copied[i], src + i * pitch, static_cast<size_t>(left));
      std::memset(copied[i] + left, 0, static_cast<size_t>(groups * 4 - left));
    }
    src = copied[0];
    pitch = kMostDepth / 2;
  }
  for (int64_t g = 0; g < groups && groups >= kVL; g += kVL) {
    // If the rest is shorter than kVL, the last ones are read again, overlapping others.
    const int64_t first = Min(g, groups - kVL);
    VecF r[kVL];
#pragma GCC unroll 16
    for (int i = 0; i < kVL; ++i) {
      r[i] = Load(src + (i < rows ? i : rows - 1) * pitch + first * 4);
    }
    Transpose(r);
#pragma GCC unroll 16
    for (int j = 0; j < kVL; ++j) Store(codes + (first + j) * kVL, r[j]);
  }
  for (int64_t g = 0; g < groups && groups < kVL; ++g) {
    for (int i = 0; i < kVL; ++i) {
      std::memcpy(codes + g * kVL + i, src + (i < rows ? i : rows - 1) * pitch + g * 4, 4);
    }
  }
}

/// The position of a decoded vector of columns in a B panel whose units are `stride` apart: element
/// i of group g, in the natural order.
template <bool kPairs>
struct NaturalPlaces {
  static constexpr bool kNatural = true;
  float* out;
  int64_t stride;

  static constexpr int Element(int i) { return i; }
  LOWRANK_MEMBER_INLINE float* At(int64_t g, int i) const {
    return out + (g * kGroup + i) / (kPairs ? 2 : 1) * stride;
  }
};

/// The same by lanes: `out` is the panel of lane 0; that of lane l is l · block further on.
template <bool kPairs>
struct LanePlaces {
  static constexpr bool kNatural = false;
  float* out;
  int64_t stride;
  int64_t block;

  static constexpr int Element(int i) { return ElementAt(i); }
  LOWRANK_MEMBER_INLINE float* At(int64_t g, int i) const {
    const int in_granule = static_cast<int>(g % kGranuleGroups);
    const int64_t place = g / kGranuleGroups * kPlaces + PlaceOf(in_granule, i);
    return out + LaneOf(in_granule, i) * block + place / (kPairs ? 2 : 1) * stride;
  }
};

/// Stores columns i and i + 1 of group g.
template <bool kPairs, DType kRound, typename Places>
LOWRANK_INLINE void StorePair(VecF even, VecF odd, int64_t g, int i, const Places& places) {
  if constexpr (kPairs) {
    StoreU(places.At(g, i), PairBF16(even, odd));
  } else {
    Store(places.At(g, i), RoundTo(kRound, even));
    Store(places.At(g, i + 1), RoundTo(kRound, odd));
  }
}

/// Decodes the codes of group g of kVL rows, 4 bits each, with their factors, and stores them.
template <bool kPairs, DType kRound, bool kAffine, typename Places>
LOWRANK_INLINE void DecodePair(const Table16& table, VecU group,
                               const LaneFactors<kAffine>& factors, int64_t g, int i,
                               const Places& places) {
  const VecF even = factors.Apply(Lookup(table, group >> NibbleShift(Places::Element(i))));
  const VecF odd = factors.Apply(Lookup(table, group >> NibbleShift(Places::Element(i + 1))));
  StorePair<kPairs, kRound>(even, odd, g, i, places);
}

/// Decodes groups of eight columns of kVL rows of w from their code words. Places are held by
/// value: by reference, each store might change them, and they would be read and multiplied again.
template <bool kPairs, DType kRound, int kBits, typename Places>
struct GroupDecoder;

template <bool kPairs, DType kRound, typename Places>
struct GroupDecoder<kPairs, kRound, 4, Places> {
  Table16 table;
  const Places places;

  GroupDecoder(const LevelTables& tables, const Places& to) : table(tables.nibbles), places(to) {}
  /// Group g, only its first `columns`; factors_of(i) are the LaneFactors of columns i and i + 1.
  template <typename Factors>
  LOWRANK_MEMBER_INLINE void Decode(const uint32_t* words, int64_t g, int64_t columns,
                                    const Factors& factors_of) const {
    const VecU group = LoadU(words + g * kVL);
#pragma GCC unroll 4
    for (int i = 0; i < kGroup; i += 2) {
      if (i < columns) DecodePair<kPairs, kRound>(table, group, factors_of(i), g, i, places);
    }
  }
};

template <bool kPairs, DType kRound, typename Places>
struct GroupDecoder<kPairs, kRound, 8, Places> {
  Levels<kMayLookUpBytes> levels;
  const Places places;

  GroupDecoder(const LevelTables& tables, const Places& to) : levels(tables.bytes), places(to) {}
  template <typename Factors>
  LOWRANK_MEMBER_INLINE void Decode(const uint32_t* words, int64_t g, int64_t columns,
                                    const Factors& factors_of) const {
#pragma GCC unroll 2
    for (int first = 0; first < kGroup; first += 4) {
      VecF values[4];
      levels.Columns(LoadU(words + (2 * g + first / 4) * kVL), values);
#pragma GCC unroll 2
      for (int i = 0; i < 4; i += 2) {
        if (first + i >= columns) continue;
        const auto factors = factors_of(first + i);
        StorePair<kPairs, kRound>(factors.Apply(values[i]), factors.Apply(values[i + 1]), g,
                                  first + i, places);
      }
    }
  }
};

/// Decodes whole granules of several parts.
template <bool kAffine, typename Decoder>
LOWRANK_INLINE void DecodeParts(const QuantView& w, int64_t row, int rows, int64_t k0, int64_t kc,
                                const uint32_t* codes, const Decoder& decoder) {
  float scratch[FactorScratch(kVL, kKC / kGranule)];
  const ScaleRows scales = PartScales(w, row, rows, k0, kc, scratch);
  const int64_t parts = scales.layout.last + 1;
  const int64_t part_groups = kGranuleGroups / parts;
  for (int64_t g = 0; g < kc / kGroup;) {
    alignas(64) float lanes[3][kVL];
    for (int l = 0; l < kVL; ++l) {
      const float* from =
          scales.At(Min(l, rows - 1), g / kGranuleGroups) + g % kGranuleGroups / part_groups;
      lanes[0][l] = *from;
      if constexpr (!kAffine) continue;
      lanes[1][l] = from[scales.layout.zeros];
      lanes[2][l] = from[scales.layout.mins];
    }
    LaneFactors<kAffine> factors;
    factors.scale = Load(lanes[0]);
    if constexpr (kAffine) {
      factors.zero = Load(lanes[1]);
      factors.min = Load(lanes[2]);
    }
    for (const int64_t end = g + part_groups; g < end; ++g) {
      decoder.Decode(codes, g, kGroup, [&](int) { return factors; });
    }
  }
}

/// One vector of columns of a B panel: rows [row, row + rows) of w, columns [k0, k0 + kc).
template <bool kPairs, DType kRound, int kBits, typename Places>
static void DecodeTransposed(const RowSource& source, int64_t row, int rows, int64_t k0, int64_t kc,
                             const Places& places) {
  const QuantView& w = *source.quant;
  const int64_t groups = CeilDiv(kc, kGroup);
  constexpr int kWords = kBits / 4;  // of a group
  alignas(64) uint32_t codes[kKC / kGroup * kWords * kVL];
  TransposeCodes(w, row, rows, k0, kBits == 4 ? groups : kc / 4, codes);
  const GroupDecoder<kPairs, kRound, kBits, Places> decoder(source.tables, places);
  if constexpr (!Places::kNatural) {
    const Granules kind = GranulesOf(source);
    if (IsAffine(kind)) return DecodeParts<true>(w, row, rows, k0, kc, codes, decoder);
    if (kind != Granules::kOne) {
      return DecodeParts<false>(w, row, rows, k0, kc, codes, decoder);
    }
  }
  if ((w.cols & (w.blocksize - 1)) != 0) {
    const UnevenScales scales(w, row, rows, k0, kc);
    for (int64_t g = 0; g < groups; ++g) {
      decoder.Decode(codes, g, kc - g * kGroup,
                     [&](int i) { return LaneFactors<false>{scales.At((g * kGroup + i) / 2)}; });
    }
    return;
  }
  alignas(64) float scales[kKC / kGroup * kVL];
  const int64_t per_scale = GatherScales(w, row, rows, k0, groups, scales);
  int64_t g = 0;
  for (int64_t s = 0; g < groups; ++s) {
    const LaneFactors<false> factors = {Load(scales + s * kVL)};
    const int64_t end = Min(g + per_scale, groups);
    for (; g < end; ++g) decoder.Decode(codes, g, kGroup, [&](int) { return factors; });
  }
}

template <bool kPairs, typename Places>
LOWRANK_INLINE void DecodeColumns(const RowSource& source, int64_t row, int rows, int64_t k0,
                                  int64_t kc, const Places& places) {
  WithRounding<kPairs>(source.round_to, [&](auto round) {
    // By lanes, only for 4-bit weights.
    if constexpr (Places::kNatural && kMayLookUpBytes) {
      if (source.quant->format->bits == 8) {
        DecodeTransposed<kPairs, round(), 8>(source, row, rows, k0, kc, places);
        return;
      }
    }
    DecodeTransposed<kPairs, round(), 4>(source, row, rows, k0, kc, places);
  });
}

/// Distance between B panels of ku units, in units. The extra 128 bytes keep the same row of
/// neighbouring panels in different sets of the L1 cache, because a block is written row by row.
constexpr int64_t PanelStride(int64_t ku) { return ku * kNR + 32; }

/// Scales of the elements of a vector from e on, which may start another block.
LOWRANK_INLINE VecF ScalesAt(const QuantView& w, int shift, int64_t e) {
  const int64_t block = e >> shift;
  const int64_t left = ((block + 1) << shift) - e;
  const VecF scale = Splat(BlockScale(w, block));
  if (left >= kVL) return scale;
  const VecF next = Splat(BlockScale(w, Min(block + 1, (w.rows * w.cols - 1) >> shift)));
  return LaneIndex() < static_cast<int32_t>(left) ? scale : next;
}

/// Vectors of columns of a row in f32. Scales are looked up where a block starts.
struct RowDecoder {
  const QuantView& w;
  Table16 table;
  int shift;
  VecF scale;
  bool one_scale = w.cols % 16 == 0;  // no block ends inside a vector

  LOWRANK_MEMBER_INLINE VecF At(int64_t e, bool first) {
    if (!one_scale) return AtUneven(e);
    if (first || (e & (w.blocksize - 1)) == 0) scale = Splat(BlockScale(w, e >> shift));
    return Lookup(table, SpreadCodes(w.codes + (e >> 1))) * scale;
  }
  /// Lanes past the end of the row hold the next row; past the end of the weight, codes of zero.
  LOWRANK_MEMBER_INLINE VecF AtUneven(int64_t e) const {
    const VecF scales = ScalesAt(w, shift, e);
    const uint8_t* codes = w.codes + (e >> 1);
    uint8_t last[kVL / 2] = {};
    const int64_t bytes = static_cast<int64_t>(w.code_bytes()) - (e >> 1);
    if (bytes < kVL / 2) {
      std::memcpy(last, codes, static_cast<size_t>(bytes));
      codes = last;
    }
    return Lookup(table, SpreadCodes(codes)) * scales;
  }
};

/// B panels of columns [n0, n0 + cols); units are rows [k0, k0 + kc) of w.
template <bool kPairs, DType kRound>
static void DecodeDirect(const RowSource& source, int64_t k0, int64_t kc, int64_t n0, int64_t cols,
                         float* out) {
  const QuantView& w = *source.quant;
  const int shift = __builtin_ctzll(static_cast<uint64_t>(w.blocksize));
  RowDecoder first = {w, source.tables.nibbles, shift, VecF{}};
  RowDecoder second = first;
  const int64_t ku = kPairs ? (kc + 1) / 2 : kc;
  for (int64_t u = 0; u < ku; ++u) {
    const int64_t row = k0 + (kPairs ? 2 * u : u);
    const bool paired = kPairs && 2 * u + 1 < kc;
    PrefetchRow(source, row + kPrefetchRows, n0, cols);
    if (kPairs) PrefetchRow(source, row + 1 + kPrefetchRows, n0, cols);
    const int64_t e = row * w.cols + n0;
    float* panel = out;
    for (int64_t n = 0; n < cols; n += kNR, panel += PanelStride(ku)) {
      const int64_t nr = Min(kNR, CeilDiv(cols - n, kVL) * kVL);
      for (int64_t v = 0; v < nr; v += kVL) {
        const VecF even = first.At(e + n + v, n + v == 0);
        if constexpr (kPairs) {
          const VecF odd = paired ? second.At(e + w.cols + n + v, n + v == 0) : VecF{};
          StoreU(panel + u * nr + v, PairBF16(even, odd));
        } else {
          Store(panel + u * nr + v, RoundTo(kRound, even));
        }
      }
    }
  }
}

/// The same for 8-bit codes: four vectors of columns, two panels, at a time.
template <bool kPairs, DType kRound, bool kBytes>
static void DecodeDirectBytes(const RowSource& source, int64_t k0, int64_t kc, int64_t n0,
                              int64_t cols, float* out) {
  const QuantView& w = *source.quant;
  const Levels<kBytes> levels(source.tables.bytes);
  const int shift = __builtin_ctzll(static_cast<uint64_t>(w.blocksize));
  const int64_t elems = w.rows * w.cols;
  constexpr int64_t kRun = 4 * kVL;
  // Elements from e on, of which `count` belong to this row. The rest is whatever follows.
  const auto decode = [&](int64_t e, int64_t count,
                          VecF(&values)[4]) __attribute__((always_inline)) {
    if (e + kRun <= elems) {
      levels.Run(w.codes + e, values);
    } else {
      uint8_t last[kRun] = {};
      std::memcpy(last, w.codes + e, static_cast<size_t>(count));
      levels.Run(last, values);
    }
    const int64_t block = e >> shift;
    const bool one_scale = (e + count - 1) >> shift == block;
    const VecF scale = Splat(BlockScale(w, block));
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      values[j] *= one_scale ? scale : ScalesAt(w, shift, e + Min(j * kVL, count - 1));
    }
  };
  const int64_t ku = kPairs ? (kc + 1) / 2 : kc;
  for (int64_t u = 0; u < ku; ++u) {
    const int64_t row = k0 + (kPairs ? 2 * u : u);
    const bool paired = kPairs && 2 * u + 1 < kc;
    PrefetchRow(source, row + kPrefetchRows, n0, cols);
    if (kPairs) PrefetchRow(source, row + 1 + kPrefetchRows, n0, cols);
    const int64_t e = row * w.cols + n0;
    float* panel = out;
    for (int64_t n = 0; n < cols; n += kRun, panel += kRun / kNR * PanelStride(ku)) {
      const int64_t count = Min(kRun, cols - n);
      VecF even[4];
      VecF odd[4] = {};
      decode(e + n, count, even);
      if (paired) decode(e + w.cols + n, count, odd);
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        if (j * kVL >= count) break;
        const int64_t first = n + j / kNV * kNR;  // column of the panel
        const int64_t nr = Min(kNR, CeilDiv(cols - first, kVL) * kVL);
        float* to = panel + j / kNV * PanelStride(ku) + u * nr + j % kNV * kVL;
        if constexpr (kPairs) {
          StoreU(to, PairBF16(even[j], odd[j]));
        } else {
          Store(to, RoundTo(kRound, even[j]));
        }
      }
    }
  }
}

template <bool kPairs>
LOWRANK_INLINE void DecodePanels(const RowSource& source, int64_t k0, int64_t kc, int64_t n0,
                                 int64_t cols, float* out) {
  WithRounding<kPairs>(source.round_to, [&](auto round) {
    if (source.quant->format->bits == 8) {
      WithLevels(source.tables.bytes, [&](auto bytes) {
        DecodeDirectBytes<kPairs, round(), bytes()>(source, k0, kc, n0, cols, out);
      });
    } else {
      DecodeDirect<kPairs, round()>(source, k0, kc, n0, cols, out);
    }
  });
}

}  // namespace lowrank::cpu::LOWRANK_ISA
