/// A granule of 4-bit codes decoded by tables: it has one scale, so 16 products of the codebook,
/// rounded once, stand for all of it, and a vector of its weights is one shift and one look-up.
/// Lanes have the order of sum_order.h.
#pragma once

#include "native/cpu/kernels/decode.h"

namespace lowrank::cpu::LOWRANK_ISA {

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kRegisters = 32;
#else
constexpr int kRegisters = 16;
#endif

/// The codes of a granule of one row, unit by unit of all lanes: a unit is one element, or a pair
/// of bf16 that are neighbours along the summation index.
template <bool kPairs, DType kRound>
struct GranuleDecoder;

template <DType kRound>
struct GranuleDecoder<false, kRound> {
  static constexpr int kUnits = kPlaces;
  Table16 table;
  VecU group;

  LOWRANK_MEMBER_INLINE void SetScale(const Table16& codebook, float scale) {
    table = ScaleTable(codebook, scale, [](VecF v) { return RoundTo(kRound, v); });
  }
  LOWRANK_MEMBER_INLINE VecF At(const uint8_t* codes, int u) {
#if defined(__AVX512F__)
    if (u == 0) group = LoadTwice(codes);
#else
    if (u % kGroup == 0) group = LoadU(codes + u / kGroup * kVL * 4);
#endif
    VecU shifts;
#pragma GCC unroll 16
    for (int l = 0; l < kVL; ++l) {
      shifts[l] = static_cast<uint32_t>(NibbleShift(ElementOf(l, u) % kGroup));
    }
    return Lookup(table, group >> shifts);
  }
};

#if defined(__AVX512BF16__)
template <DType kRound>
struct GranuleDecoder<true, kRound> {
  static constexpr int kUnits = kPlaces / 2;
  VecU table;
  VecP group;

  LOWRANK_MEMBER_INLINE void SetScale(const Table16& codebook, float scale) {
    table = PairTable(ScaleTable(codebook, scale, [](VecF v) { return v; }));
  }
  LOWRANK_MEMBER_INLINE VecF At(const uint8_t* codes, int u) {
    if (u == 0) group = reinterpret_cast<VecP>(LoadTwice(codes));
    VecP shifts;
#pragma GCC unroll 32
    for (int i = 0; i < 2 * kVL; ++i) {
      // The second of a pair is the same nibble of the group's upper half.
      shifts[i] = static_cast<uint16_t>(NibbleShift(ElementOf(i / 2, 2 * u) % kGroup));
    }
    return AsFloat(LookupBF16(table, group >> shifts));
  }
};
#endif

/// Scales of granules, by the element that they begin with.
struct GranuleScale {
  const QuantView& w;
  int shift;

  explicit GranuleScale(const QuantView& quant)
      : w(quant), shift(__builtin_ctzll(static_cast<uint64_t>(quant.blocksize))) {}
  LOWRANK_MEMBER_INLINE float operator()(int64_t e) const { return BlockScale(w, e >> shift); }
};

/// Scales of granules of some rows of w, from a column on that begins one.
struct ScaleRows {
  const float* data;  // of row r, granule g: data[r · pitch + ((g + first) >> shift)]
  int64_t pitch;
  int64_t first;  // granules of its block that lie before the column
  int shift;      // granules to a block, as a power of two

  LOWRANK_MEMBER_INLINE float At(int64_t row, int64_t g) const {
    return data[row * pitch + ((g + first) >> shift)];
  }
};

/// Those of rows [row, row + rows), columns [k0, k0 + span): in the weight, or decoded to `out`,
/// which has room for a scale of each granule and one more a row.
LOWRANK_INLINE ScaleRows ScalesOf(const QuantView& w, int64_t row, int64_t rows, int64_t k0,
                                  int64_t span, float* out) {
  const int shift = __builtin_ctzll(static_cast<uint64_t>(w.blocksize));
  const int64_t row_blocks = w.cols >> shift;
  const int64_t first = row * row_blocks + (k0 >> shift);
  ScaleRows scales;
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

/// A place of every lane of a granule, as units whose summation index are rows of w: one element,
/// or a pair of bf16 of this row and the one `apart` elements on.
template <bool kPairs, DType kRound>
struct GranuleRows;

template <DType kRound>
struct GranuleRows<false, kRound> {
  GranuleDecoder<false, kRound> row;
  const uint8_t* codes;

  /// The granule whose codes are at `data`, and its scale.
  LOWRANK_MEMBER_INLINE void Set(const Table16& codebook, const uint8_t* data, int64_t, float scale,
                                 float) {
    codes = data;
    row.SetScale(codebook, scale);
  }
  LOWRANK_MEMBER_INLINE VecF At(int p) { return row.At(codes, p); }
};

#if defined(__AVX512BF16__)
/// Halves of the table and of every lane: this row low, the other row high. Elements 0 to 3 of a
/// group lie in its lower 16 bits, so places 0 and 2 come from one arrangement of both rows'
/// halves, 1 and 3 from another.
template <DType kRound>
struct GranuleRows<true, kRound> {
  VecU table;
  VecU halves[2];

  /// The other row's codes are `apart_bytes` on; with 0 there is none, and zeros take its place.
  LOWRANK_MEMBER_INLINE void Set(const Table16& codebook, const uint8_t* codes, int64_t apart_bytes,
                                 float scale, float other_scale) {
    const VecF low = codebook.entries * Splat(scale);
    const VecF high = apart_bytes == 0 ? VecF{} : codebook.entries * Splat(other_scale);
    table = NeighboursBF16(low, high);
    const VecU first = LoadTwice(codes);
    const VecU second = LoadTwice(codes + apart_bytes);
    halves[0] = (first & 0xffffu) | (second << 16);
    halves[1] = (first >> 16) | (second & 0xffff0000u);
  }
  LOWRANK_MEMBER_INLINE VecF At(int p) const {
    VecP shifts;
#pragma GCC unroll 32
    for (int i = 0; i < 2 * kVL; ++i) {
      shifts[i] = static_cast<uint16_t>(NibbleShift(ElementOf(i / 2, p) % (kGroup / 2)));
    }
    const VecU code = reinterpret_cast<VecU>(reinterpret_cast<VecP>(halves[p & 1]) >> shifts);
    return AsFloat(LookupBF16(table, reinterpret_cast<VecP>((code & 0x000f000fu) | 0x00100000u)));
  }
};
#endif

/// B panels of columns [n0, n0 + cols), whole granules in the order of lanes; units are rows
/// [k0, k0 + kc) of w. Panels are PanelStride apart.
template <bool kPairs, DType kRound>
static void DecodeGranules(const RowSource& source, int64_t k0, int64_t kc, int64_t n0,
                           int64_t cols, float* out) {
  const GranuleScale scale_of(*source.quant);
  const int64_t ku = kPairs ? (kc + 1) / 2 : kc;
  for (int64_t u = 0; u < ku; ++u) {
    const int64_t row = k0 + (kPairs ? 2 * u : u);
    const int64_t apart = kPairs && 2 * u + 1 < kc ? source.cols : 0;
    PrefetchRow(source, row + kPrefetchRows, n0, cols);
    if (kPairs) PrefetchRow(source, row + 1 + kPrefetchRows, n0, cols);
    float* panel = out + u * kNR;
    for (int64_t n = n0; n < n0 + cols; n += kGranule) {
      const int64_t e = row * source.cols + n;
      GranuleRows<kPairs, kRound> granule;
      granule.Set(source.table, source.quant->codes + e / 2, apart / 2, scale_of(e),
                  scale_of(e + apart));
#pragma GCC unroll 16
      for (int p = 0; p < kPlaces; ++p) {
        Store(panel + p % kNV * kVL, granule.At(p));
        if (p % kNV == kNV - 1) panel += PanelStride(ku);
      }
    }
  }
}

template <bool kPairs>
LOWRANK_INLINE void DecodeGranulePanels(const RowSource& source, int64_t k0, int64_t kc, int64_t n0,
                                        int64_t cols, float* out) {
  if (kPairs || source.round_to == DType::kF32) {
    DecodeGranules<kPairs, DType::kF32>(source, k0, kc, n0, cols, out);
  } else if (source.round_to == DType::kBF16) {
    DecodeGranules<kPairs, DType::kBF16>(source, k0, kc, n0, cols, out);
  } else {
    DecodeGranules<kPairs, DType::kF16>(source, k0, kc, n0, cols, out);
  }
}

/// Rows of columns in the order of lanes, [rows][ldc], to that of w's columns, in place.
static void UnspreadColumns(int64_t rows, int64_t cols, float* c, int64_t ldc) {
  for (int64_t m = 0; m < rows; ++m) {
    for (int64_t n = 0; n < cols; n += kGranule) {
      float* granule = c + m * ldc + n;
      VecF place[kPlaces];
#pragma GCC unroll 16
      for (int p = 0; p < kPlaces; ++p) place[p] = Load(granule + p * kVL);
#if defined(__AVX512F__)
      // Places 0 and 1, then 2 and 3, of the lanes that two groups have; then those two.
#pragma GCC unroll 4
      for (int v = 0; v < kPlaces; ++v) {
        VecI pick, join;
#pragma GCC unroll 16
        for (int j = 0; j < kVL; ++j) {
          // Place i of group g is lane g or g + 8, place i % 4.
          const int i = PlaceInGroup(j % kGroup);
          const int lane = LaneOf(2 * v + j / kGroup, i);
          pick[j] = (i & 1) * kVL + lane;
          join[j] = (i & 2) != 0 ? kVL + j : j;
        }
        const auto permute = [](VecF a, VecF b, VecI lanes) {
          return reinterpret_cast<VecF>(_mm512_permutex2var_ps(reinterpret_cast<__m512>(a),
                                                               reinterpret_cast<__m512i>(lanes),
                                                               reinterpret_cast<__m512>(b)));
        };
        const VecF first = permute(place[0], place[1], pick);
        const VecF second = permute(place[2], place[3], pick);
        Store(granule + v * kVL, permute(first, second, join));
      }
#else
#pragma GCC unroll 16
      for (int p = 0; p < kPlaces; ++p) {
#pragma GCC unroll 16
        for (int l = 0; l < kVL; ++l) granule[ElementOf(l, p)] = place[p][l];
      }
#endif
    }
  }
}

/// The way back, for columns that meet those: B panels [ku][kNR] of `cols` columns, whole granules.
static void SpreadPanels(int64_t ku, int64_t cols, float* panels) {
  alignas(64) float granule[kGranule];
  for (int64_t u = 0; u < ku; ++u) {
    for (int64_t n = 0; n < cols; n += kGranule) {
      const auto vector = [&](int p) {
        return panels + (n + p * kVL) / kNR * PanelStride(ku) + u * kNR + p * kVL % kNR;
      };
#pragma GCC unroll 16
      for (int p = 0; p < kPlaces; ++p) Store(granule + p * kVL, Load(vector(p)));
#pragma GCC unroll 16
      for (int p = 0; p < kPlaces; ++p) {
        VecU from;
#pragma GCC unroll 16
        for (int l = 0; l < kVL; ++l) from[l] = static_cast<uint32_t>(ElementOf(l, p));
        Store(vector(p), Gather(granule, from));
      }
    }
  }
}

}  // namespace lowrank::cpu::LOWRANK_ISA
