/// Decodes a granule of 4-bit codes. Lanes have the order of sum_order.h.
///
///   one scale       16 products with the codebook, rounded once, serve all of it: a vector of its
///                   weights is one shift and one look-up
///   several parts   as many tables, and the number of a lane's part as the upper bits of its
///                   index. Quarters in f32, and vectors of less than 512 bits: levels are looked
///                   up, and each lane has its part's factors
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

/// Calls body with the rounding of a kernel. Granules of several parts have one kernel for all
/// dtypes: next to their factors a branch costs little.
template <bool kPairs, Granules kKind, typename Body>
LOWRANK_INLINE auto WithTableRounding(DType round_to, const Body& body) {
  if constexpr (kKind != Granules::kOne) {
    return body(ToldRounding());
  } else {
    return WithRounding<kPairs>(round_to, [&](auto round) { return body(RoundingOf<round()>()); });
  }
}

/// round_T(codebook · scale): the values of all codes of a granule.
LOWRANK_INLINE Table16 GranuleTable(const Table16& codebook, float scale, DType round_to) {
  const auto rounded = [&](DType to) __attribute__((always_inline)) {
    return ScaleTable(codebook, scale, [to](VecF v) { return RoundTo(to, v); });
  };
  if (round_to == DType::kF32) return rounded(DType::kF32);
  return round_to == DType::kBF16 ? rounded(DType::kBF16) : rounded(DType::kF16);
}

/// The part, of `last` + 1, in which each lane's element at place p lies.
LOWRANK_INLINE VecU PartOfLanes(int p, int last) {
  VecU element;
#pragma GCC unroll 16
  for (int l = 0; l < kVL; ++l) element[l] = static_cast<uint32_t>(ElementOf(l, p));
  return element * SplatU(static_cast<uint32_t>(last) + 1) / static_cast<uint32_t>(kGranule);
}

/// The codes of a granule of one row, unit by unit for all lanes. A unit is one element, or a pair
/// of bf16 neighbours along the summation index, rounded where it is made.
template <bool kPairs, Granules kKind = Granules::kOne>
struct GranuleDecoder;

template <Granules kKind>
struct GranuleDecoder<false, kKind> {
  // Narrow vectors take the first half of a granule, then the second.
  static constexpr int kPasses = kVL == 4 ? 2 : 1;
  static constexpr int kUnits = kPlaces;
  static constexpr int64_t kCodeBytes = kGranule / 2;
  Table16 levels;
  LaneFactors<IsAffine(kKind)> factors[kPasses];
  DType round_to;
  VecU group;

  LOWRANK_MEMBER_INLINE void SetScale(const Table16& codebook, const float* scale,
                                      const FactorLayout& layout, DType round) {
    levels = codebook;
    round_to = round;
#pragma GCC unroll 2
    for (int i = 0; i < kPasses; ++i) {
      const VecU part = PartOfLanes(i * kGroup, layout.last);
      factors[i].scale = PickOfFour(scale, part);
      if constexpr (IsAffine(kKind)) {
        factors[i].zero = PickOfFour(scale + layout.zeros, part);
        factors[i].min = PickOfFour(scale + layout.mins, part);
      }
    }
  }
  LOWRANK_MEMBER_INLINE VecF At(const uint8_t* codes, int u) {
    LoadGroup(codes, u, &group);
    return RoundTo(round_to, factors[u / kGroup % kPasses].Apply(Lookup(levels, ToLow(group, u))));
  }

  static LOWRANK_MEMBER_INLINE void LoadGroup(const uint8_t* codes, int u, VecU* group) {
#if defined(__AVX512F__)
    if (u == 0) *group = LoadTwice(codes);
#else
    if (u % kGroup == 0) *group = LoadU(codes + u / kGroup * kVL * 4);
#endif
  }
  /// Each lane's code of unit u in its low bits.
  static LOWRANK_MEMBER_INLINE VecU ToLow(VecU group, int u) {
    VecU shifts;
#pragma GCC unroll 16
    for (int l = 0; l < kVL; ++l) {
      shifts[l] = static_cast<uint32_t>(NibbleShift(ElementOf(l, u) % kGroup));
    }
    return group >> shifts;
  }
};

#if defined(__AVX512F__)
/// f32, halves: a look-up takes one of 32 weights, 16 of each half. The codes of a granule are put
/// apart once, with the half of the lane above each, so a place of them costs at most a shift:
/// 6 operations for four places, where shifts and masks of each would be 8.
template <Granules kKind>
struct HalvesDecoder {
  static constexpr int kUnits = kPlaces;
  static constexpr int64_t kCodeBytes = kGranule / 2;
  VecF table[2];
  VecU nibbles[2];  // the high ones: places 0 and 1; the low ones: 2 and 3

  LOWRANK_MEMBER_INLINE void SetScale(const Table16& codebook, const float* scale,
                                      const FactorLayout& layout, DType round_to) {
    const auto set = [&](DType to) __attribute__((always_inline)) {
      for (int i = 0; i < 2; ++i) {
        const float* part = scale + i * layout.last;
        table[i] = RoundTo(to, ApplyFactors<kKind>(codebook.entries, part, layout));
      }
    };
    if (round_to == DType::kF32) return set(DType::kF32);
    return round_to == DType::kBF16 ? set(DType::kBF16) : set(DType::kF16);
  }
  LOWRANK_MEMBER_INLINE VecF At(const uint8_t* codes, int u) {
    if (u == 0) {
      VecU upper;
#pragma GCC unroll 16
      for (int l = 0; l < kVL; ++l) {
        upper[l] = static_cast<uint32_t>(NibbleShift(ElementOf(l, 2) % kGroup));
      }
      const VecU group = LoadTwice(codes) >> upper;
      const VecU part = PartOfLanes(0, 1) * 0x00100010u;
      nibbles[0] = MaskedOr(group >> 4, SplatU(0x000f000fu), part);
      nibbles[1] = MaskedOr(group, SplatU(0x000f000fu), part);
    }
    const VecU index = nibbles[u / 2];
    return Lookup(table[0], table[1], u % 2 == 0 ? index : index >> 16);
  }
};
template <>
struct GranuleDecoder<false, Granules::kHalves> : HalvesDecoder<Granules::kHalves> {};
template <>
struct GranuleDecoder<false, Granules::kHalvesAffine> : HalvesDecoder<Granules::kHalvesAffine> {};
#endif

template <>
struct GranuleDecoder<false, Granules::kOne> {
  using Codes = GranuleDecoder<false, Granules::kQuarters>;
  static constexpr int kUnits = kPlaces;
  static constexpr int64_t kCodeBytes = kGranule / 2;
  Table16 table;
  VecU group;

  LOWRANK_MEMBER_INLINE void SetScale(const Table16& codebook, const float* scale,
                                      const FactorLayout&, DType round_to) {
    table = GranuleTable(codebook, *scale, round_to);
  }
  LOWRANK_MEMBER_INLINE VecF At(const uint8_t* codes, int u) {
    Codes::LoadGroup(codes, u, &group);
    return Lookup(table, Codes::ToLow(group, u));
  }
};

#if defined(__AVX512BF16__)
/// A table of 32 or 64 values, 16 for each half or quarter, whose number is in the bits above the
/// code.
template <Granules kKind>
struct GranuleDecoder<true, kKind> {
  static constexpr int kUnits = kPlaces / 2;
  static constexpr int64_t kCodeBytes = kGranule / 2;
  static constexpr bool kFour = kKind == Granules::kQuarters;
  VecU table[kFour ? 2 : 1];
  VecP group;

  LOWRANK_MEMBER_INLINE void SetScale(const Table16& codebook, const float* scale,
                                      const FactorLayout& layout, DType) {
    const auto part = [&](int at) __attribute__((always_inline)) {
      return ApplyFactors<kKind>(codebook.entries, scale + at, layout);
    };
    if constexpr (kKind == Granules::kOne) {
      const VecF one = part(0);
      table[0] = NeighboursBF16(one, one);
    } else if constexpr (kFour) {
      table[0] = NeighboursBF16(part(0), part(1));
      table[1] = NeighboursBF16(part(2), part(3));
    } else {
      table[0] = NeighboursBF16(part(0), part(layout.last));
    }
  }
  LOWRANK_MEMBER_INLINE VecF At(const uint8_t* codes, int u) {
    if (u == 0) group = reinterpret_cast<VecP>(LoadTwice(codes));
    VecP shifts;
#pragma GCC unroll 32
    for (int i = 0; i < 2 * kVL; ++i) {
      // The second element of a pair is the same nibble of the group's upper half.
      shifts[i] = static_cast<uint16_t>(NibbleShift(ElementOf(i / 2, 2 * u) % kGroup));
    }
    VecP index = group >> shifts;
    if constexpr (kKind == Granules::kOne) return AsFloat(LookupBF16(table[0], index));
    const VecU part = PartOfLanes(0, kFour ? 3 : 1);
    index = reinterpret_cast<VecP>(
        MaskedOr(reinterpret_cast<VecU>(index), SplatU(0x000f000fu), part * 0x00100010u));
    if constexpr (kFour) return AsFloat(LookupBF16(table[0], table[1], index));
    return AsFloat(LookupBF16(table[0], index));
  }
};
#endif

/// The scales of granules, by their first element, where every granule has one.
struct GranuleScale {
  const QuantView& w;
  int shift;

  explicit GranuleScale(const QuantView& quant)
      : w(quant), shift(__builtin_ctzll(static_cast<uint64_t>(quant.blocksize))) {}
  LOWRANK_MEMBER_INLINE float operator()(int64_t e) const { return BlockScale(w, e >> shift); }
};

/// One place of every lane of a granule, as units whose summation index are rows of w: one element,
/// or a pair of bf16 of this row and another.
template <bool kPairs, Granules kKind = Granules::kOne>
struct GranuleRows;

template <Granules kKind>
struct GranuleRows<false, kKind> {
  GranuleDecoder<false, kKind> row;
  const uint8_t* codes;

  /// The granule whose codes are at `data`, and its scale. The other row's arguments are not used.
  LOWRANK_MEMBER_INLINE void SetCodes(const void* data, const void*) {
    codes = static_cast<const uint8_t*>(data);
  }
  LOWRANK_MEMBER_INLINE void SetScales(const Table16& codebook, DType round_to, const float* scale,
                                       const float*, const FactorLayout& layout, bool) {
    row.SetScale(codebook, scale, layout, round_to);
  }
  LOWRANK_MEMBER_INLINE VecF At(int p) { return row.At(codes, p); }
};

#if defined(__AVX512BF16__)
/// Halves of the table and of every lane: this row low, the other row high. A half has two bytes of
/// its row's group of eight codes, so all four places of a lane come from two sets of nibbles, each
/// with the bit that selects its row's half of the table: two places need no shift, the others one
/// of eight bits. Where a granule has several parts, so has the table: 32 values for each, and the
/// bits above select the lane's.
template <Granules kKind>
struct GranuleRows<true, kKind> {
  static constexpr int kParts = kKind == Granules::kOne ? 1 : kKind == Granules::kQuarters ? 4 : 2;
  VecU table[kParts];
  VecU nibbles[2];  // the high ones: places 0 and 1; the low ones: 2 and 3

  /// The granules of two rows. If there is no other row, zeros replace it, and its codes may be any
  /// readable ones. Tables stay while codes change.
  LOWRANK_MEMBER_INLINE void SetScales(const Table16& codebook, DType, const float* scale,
                                       const float* other_scale, const FactorLayout& layout,
                                       bool two) {
#pragma GCC unroll 4
    for (int i = 0; i < kParts; ++i) {
      const int at = kParts == 2 ? i * layout.last : i;
      const VecF low = ApplyFactors<kKind>(codebook.entries, scale + at, layout);
      const VecF high =
          two ? ApplyFactors<kKind>(codebook.entries, other_scale + at, layout) : VecF{};
      table[i] = NeighboursBF16(low, high);
    }
  }
  LOWRANK_MEMBER_INLINE void SetCodes(const void* codes, const void* other_codes) {
    const VecU both = HalvesOfTwo(codes, other_codes);
    // The other row's bit, and the parity of the part.
    VecU bits = SplatU(0x10100000u);
    if constexpr (kParts > 1) bits |= (PartOfLanes(0, kParts - 1) & 1u) * 0x20202020u;
    nibbles[0] = ((both >> 4) & 0x0f0f0f0fu) | bits;
    nibbles[1] = (both & 0x0f0f0f0fu) | bits;
  }
  LOWRANK_MEMBER_INLINE VecF At(int p) const {
    const VecU code = nibbles[p / 2];
    const VecP index = reinterpret_cast<VecP>(p % 2 == 0 ? code : code >> 8);
    if constexpr (kParts == 1) return AsFloat(LookupBF16(table[0], index));
    if constexpr (kParts == 2) return AsFloat(LookupBF16(table[0], table[1], index));
    if constexpr (kParts == 4) {
      const VecU first = LookupBF16(table[0], table[1], index);
      const VecU second = LookupBF16(table[2], table[3], index);
      return AsFloat(PartOfLanes(0, 1) == 0u ? first : second);
    }
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
