/// Decodes a granule of 4-bit codes by tables. A granule has one scale, so 16 products with the
/// codebook, rounded once, serve all of it, and a vector of its weights is one shift and one
/// look-up. Lanes have the order of sum_order.h.
#pragma once

#include "native/cpu/kernels/decode/decode.h"

namespace lowrank::cpu::LOWRANK_ISA {

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kRegisters = 32;
#else
constexpr int kRegisters = 16;
#endif

/// The dtype that decoded weights are rounded to: fixed when a kernel is compiled, or given at run
/// time. The latter costs one branch per table, always in the same direction.
template <DType kRound>
struct KnownRounding {
  static constexpr DType Of(DType) { return kRound; }
};
struct ToldRounding {
  static DType Of(DType round_to) { return round_to; }
};

/// Look-ups by loads, one per element, hide the branch. With one instruction per vector the branch
/// is visible (dx of one row takes 1.2 times as long in bf16, of two 1.25, of four 1.04, AVX2 and
/// AVX-512).
template <DType kRound>
using RoundingOf = std::conditional_t<kHasLookUps, KnownRounding<kRound>, ToldRounding>;

/// round_T(codebook · scale): the values of all codes of a granule.
LOWRANK_INLINE Table16 GranuleTable(const Table16& codebook, float scale, DType round_to) {
  const auto rounded = [&](DType to) __attribute__((always_inline)) {
    return ScaleTable(codebook, scale, [to](VecF v) { return RoundTo(to, v); });
  };
  if (round_to == DType::kF32) return rounded(DType::kF32);
  return round_to == DType::kBF16 ? rounded(DType::kBF16) : rounded(DType::kF16);
}

/// The codes of a granule of one row, unit by unit for all lanes. A unit is one element, or a pair
/// of bf16 neighbours along the summation index, rounded where it is made.
template <bool kPairs>
struct GranuleDecoder;

template <>
struct GranuleDecoder<false> {
  static constexpr int kUnits = kPlaces;
  Table16 table;
  VecU group;

  LOWRANK_MEMBER_INLINE void SetScale(const Table16& codebook, float scale, DType round_to) {
    table = GranuleTable(codebook, scale, round_to);
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
template <>
struct GranuleDecoder<true> {
  static constexpr int kUnits = kPlaces / 2;
  VecU table;
  VecP group;

  LOWRANK_MEMBER_INLINE void SetScale(const Table16& codebook, float scale, DType) {
    table = PairTable(ScaleTable(codebook, scale, [](VecF v) { return v; }));
  }
  LOWRANK_MEMBER_INLINE VecF At(const uint8_t* codes, int u) {
    if (u == 0) group = reinterpret_cast<VecP>(LoadTwice(codes));
    VecP shifts;
#pragma GCC unroll 32
    for (int i = 0; i < 2 * kVL; ++i) {
      // The second element of a pair is the same nibble of the group's upper half.
      shifts[i] = static_cast<uint16_t>(NibbleShift(ElementOf(i / 2, 2 * u) % kGroup));
    }
    return AsFloat(LookupBF16(table, group >> shifts));
  }
};
#endif

/// Scales of granules, by their first element.
struct GranuleScale {
  const QuantView& w;
  int shift;

  explicit GranuleScale(const QuantView& quant)
      : w(quant), shift(__builtin_ctzll(static_cast<uint64_t>(quant.blocksize))) {}
  LOWRANK_MEMBER_INLINE float operator()(int64_t e) const { return BlockScale(w, e >> shift); }
};

/// Scales of the granules of some rows of w, from a column on that starts a granule.
struct ScaleRows {
  const float* data;  // of row r, granule g: data[r · pitch + Index(g)]
  int64_t pitch;
  int64_t first;  // granules of its block before the column
  int shift;      // granules per block, as a power of two

  LOWRANK_MEMBER_INLINE int64_t Index(int64_t g) const { return (g + first) >> shift; }
  LOWRANK_MEMBER_INLINE float At(int64_t row, int64_t g) const {
    return data[row * pitch + Index(g)];
  }
};

/// The scales of rows [row, row + rows), columns [k0, k0 + span): in the weight, or decoded to
/// `out`, which has room for a scale per granule and one more per row.
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

/// One place of every lane of a granule, as units whose summation index are rows of w: one element,
/// or a pair of bf16 of this row and another.
template <bool kPairs>
struct GranuleRows;

template <>
struct GranuleRows<false> {
  GranuleDecoder<false> row;
  const uint8_t* codes;

  /// The granule whose codes are at `data`, and its scale. The other row's arguments are not used.
  LOWRANK_MEMBER_INLINE void SetCodes(const void* data, const void*) {
    codes = static_cast<const uint8_t*>(data);
  }
  LOWRANK_MEMBER_INLINE void SetScales(const Table16& codebook, DType round_to, float scale, float,
                                       bool) {
    row.SetScale(codebook, scale, round_to);
  }
  LOWRANK_MEMBER_INLINE VecF At(int p) { return row.At(codes, p); }
};

#if defined(__AVX512BF16__)
/// Halves of the table and of every lane: this row low, the other row high. A half has two bytes of
/// its row's group of eight codes, so all four places of a lane come from two sets of nibbles, each
/// with the bit that selects its row's half of the table: two places need no shift, the others one
/// of eight bits.
template <>
struct GranuleRows<true> {
  VecU table;
  VecU nibbles[2];  // the high ones: places 0 and 1; the low ones: 2 and 3

  /// The granules of two rows. If there is no other row, zeros replace it, and its codes may be any
  /// readable ones. Tables stay while codes change.
  LOWRANK_MEMBER_INLINE void SetScales(const Table16& codebook, DType, float scale,
                                       float other_scale, bool two) {
    const VecF low = codebook.entries * Splat(scale);
    const VecF high = two ? codebook.entries * Splat(other_scale) : VecF{};
    table = NeighboursBF16(low, high);
  }
  LOWRANK_MEMBER_INLINE void SetCodes(const void* codes, const void* other_codes) {
    const VecU both = HalvesOfTwo(codes, other_codes);
    nibbles[0] = ((both >> 4) & 0x0f0f0f0fu) | 0x10100000u;
    nibbles[1] = (both & 0x0f0f0f0fu) | 0x10100000u;
  }
  LOWRANK_MEMBER_INLINE VecF At(int p) const {
    const VecU code = nibbles[p / 2];
    return AsFloat(LookupBF16(table, reinterpret_cast<VecP>(p % 2 == 0 ? code : code >> 8)));
  }

 private:
  /// From each row's eight groups, bytes 0 and 2 into the lower lanes, 1 and 3 into the upper ones.
  /// One permutation of two sources (VBMI) instead of two permutations and a blend, with which dx
  /// of one row took a seventh longer.
  static LOWRANK_MEMBER_INLINE VecU HalvesOfTwo(const void* low, const void* high) {
    typedef uint8_t Bytes __attribute__((vector_size(64)));
    Bytes from = {};
#pragma GCC unroll 64
    for (int i = 0; i < 64; ++i) {
      from[i] = static_cast<uint8_t>(i % 32 / 4 * 4 + i % 2 * 2 + i / 32 + (i % 4 < 2 ? 0 : 64));
    }
    // GCC restricts the source of a "cast" to 16 registers, which spilled a sum of 8 rows of dy
    // (1.5 times the time of 16 rows, core of 2 x 512-bit multiply-adds).
    const auto row = [](const void* p) {
      return _mm512_zextsi256_si512(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
    };
    return reinterpret_cast<VecU>(
        _mm512_permutex2var_epi8(row(low), reinterpret_cast<__m512i>(from), row(high)));
  }
};
#endif

/// Reorders columns of rows [rows][ldc] from the order of lanes to that of w's columns, in place.
static void UnspreadColumns(int64_t rows, int64_t cols, float* c, int64_t ldc) {
  for (int64_t m = 0; m < rows; ++m) {
    for (int64_t n = 0; n < cols; n += kGranule) {
      float* granule = c + m * ldc + n;
      VecF place[kPlaces];
#pragma GCC unroll 16
      for (int p = 0; p < kPlaces; ++p) place[p] = Load(granule + p * kVL);
#if defined(__AVX512F__)
      // Places 0 and 1, then 2 and 3, of the lanes that two groups have; then both of these.
#pragma GCC unroll 4
      for (int v = 0; v < kPlaces; ++v) {
        VecI pick, join;
#pragma GCC unroll 16
        for (int j = 0; j < kVL; ++j) {
          // Place i of group g is in lane g or g + 8, at place i % 4.
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

/// The inverse, for columns that are added to those: B panels [ku][kNR] of `cols` columns, whole
/// granules.
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
