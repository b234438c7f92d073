/// Decodes granules of codes of any width but four bits: integers, floats of 8 bits, K-quants of 2,
/// 3, 5 and 6 bits.
///
///   1. codes     a byte each, in the order in which vectors are made: 64 codes of `bits` bits are
///                spread over 64 bytes and permuted at once
///   2. weights   a vector of bytes widened to lanes, its levels, and the factors of its lanes
///
/// Numerics   PlaneValue, then one rounding: the same bits as planes.h
/// Budget     a granule, AVX-512 with VBMI: 3 or 4 operations for the codes; for each of four
///            vectors 3 for the levels, 1 to 3 for the factors and 1.5 to convert and store; a
///            table of 256 levels takes 22 in place of 12
#pragma once

#include "native/cpu/kernels/decode/granule.h"

namespace lowrank::cpu::LOWRANK_ISA {

/// The order of a granule's codes.
enum class CodeOrder {
  kNatural,  // vector p: elements p · kVL to (p + 1) · kVL - 1
  kLanes,    // vector p: place p of every lane (sum_order.h)
  kPairs,    // vectors 2u and 2u + 1: places 2u and 2u + 1 of the lower lanes, then of the upper
             // ones, in turn, so that both vectors side by side are pairs
};

/// Where byte i of a granule's codes comes from: its element.
template <CodeOrder kOrder>
constexpr int ElementOfByte(int i) {
  const int lane = i % kVL, vector = i / kVL;
  if (kOrder == CodeOrder::kNatural) return i;
  if (kOrder == CodeOrder::kLanes) return ElementOf(lane, vector);
  return ElementOf(lane / 2 + vector % 2 * (kVL / 2), vector / 2 * 2 + lane % 2);
}

#if defined(__AVX512F__)
/// Bytes of v by index: VPERMB, which the compiler may not know here.
LOWRANK_INLINE __m512i PermuteBytes(__m512i index, __m512i v) {
  __m512i out;
  asm("vpermb %2, %1, %0" : "=v"(out) : "v"(index), "v"(v));
  return out;
}
/// Byte j of each 64-bit lane of v from bit shifts[j] on: VPMULTISHIFTQB.
LOWRANK_INLINE __m512i ShiftBytes(__m512i shifts, __m512i v) {
  __m512i out;
  asm("vpmultishiftqb %2, %1, %0" : "=v"(out) : "v"(shifts), "v"(v));
  return out;
}

/// Of eight codes of each width in a 64-bit lane: their bytes in a granule, and the bit at which
/// each code starts.
struct SpreadTables {
  alignas(64) uint8_t bytes[9][kGranule];
  alignas(64) uint8_t shifts[9][kGranule];

  constexpr SpreadTables() : bytes(), shifts() {
    for (int bits = 1; bits <= 8; ++bits) {
      for (int i = 0; i < kGranule; ++i) {
        const int byte = i % 8 < bits ? i % 8 : bits - 1;
        bytes[bits][i] = static_cast<uint8_t>(i / 8 * bits + byte);
        shifts[bits][i] = static_cast<uint8_t>(i % 8 * bits);
      }
    }
  }
};
static constexpr SpreadTables kSpread;

template <CodeOrder kOrder>
LOWRANK_INLINE void UnpackByBytes(const uint8_t* from, int bits, int64_t granules, int64_t ahead,
                                  uint8_t* out, uint8_t flip) {
  typedef uint8_t Bytes __attribute__((vector_size(64)));
  Bytes order;
#pragma GCC unroll 64
  for (int i = 0; i < 64; ++i) order[i] = static_cast<uint8_t>(ElementOfByte<kOrder>(i));
  const __m512i in_order = reinterpret_cast<__m512i>(order);
  const __m512i flips = _mm512_set1_epi8(static_cast<char>(flip));
  if (bits == 8) {
    for (int64_t g = 0; g < granules; ++g) {
      __builtin_prefetch(from + ahead + g * 64, 0, 2);
      const __m512i codes = PermuteBytes(in_order, _mm512_loadu_si512(from + g * 64));
      _mm512_store_si512(out + g * 64, _mm512_xor_si512(codes, flips));
    }
    return;
  }
  const __m512i bytes = _mm512_load_si512(kSpread.bytes[bits]);
  const __m512i shifts = _mm512_load_si512(kSpread.shifts[bits]);
  const __m512i mask = _mm512_set1_epi8(static_cast<char>((1 << bits) - 1));
  const __mmask64 used = (uint64_t{1} << (8 * bits)) - 1;
  for (int64_t g = 0; g < granules; ++g) {
    __builtin_prefetch(from + ahead + g * 8 * bits, 0, 2);
    __m512i codes = _mm512_maskz_loadu_epi8(used, from + g * 8 * bits);
    codes = _mm512_and_si512(ShiftBytes(shifts, PermuteBytes(bytes, codes)), mask);
    if (kOrder != CodeOrder::kNatural) codes = PermuteBytes(in_order, codes);
    _mm512_store_si512(out + g * 64, codes);
  }
}
#endif

/// A granule in the natural order to one by lanes: codes of eight groups, turned.
template <CodeOrder kOrder>
LOWRANK_INLINE void OrderCodes(const uint8_t* natural, uint8_t* out) {
  if constexpr (kOrder != CodeOrder::kLanes || kVL == 16) {
#pragma GCC unroll 64
    for (int i = 0; i < kGranule; ++i) out[i] = natural[ElementOfByte<kOrder>(i)];
    return;
  }
  // Exchanges blocks of four, two and one bytes between pairs of groups.
  uint64_t g[kGranuleGroups];
  std::memcpy(g, natural, sizeof(g));
  const auto exchange = [&](int step, uint64_t mask) __attribute__((always_inline)) {
    const int shift = step * 8;
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      if ((i & step) != 0) continue;
      const uint64_t moved = ((g[i] >> shift) ^ g[i | step]) & mask;
      g[i] ^= moved << shift;
      g[i | step] ^= moved;
    }
  };
  exchange(4, 0x00000000ffffffffu);
  exchange(2, 0x0000ffff0000ffffu);
  exchange(1, 0x00ff00ff00ff00ffu);
#pragma GCC unroll 8
  for (int p = 0; p < kGroup; ++p) {
    const uint64_t codes = g[ElementAt(p)];
    std::memcpy(out + p * kVL, &codes, kVL);
    if (kVL == 4) {
      const uint64_t upper = codes >> 32;
      std::memcpy(out + (p + kGroup) * kVL, &upper, kVL);
    }
  }
}

/// The codes of whole granules as bytes; nothing is read beyond them. Those of eight bits are
/// exchanged with those whose bits differ by `flip`. Prefetches those `ahead` bytes further on.
template <CodeOrder kOrder>
static void UnpackCodes(const uint8_t* from, int bits, int64_t granules, int64_t ahead,
                        uint8_t* out, uint8_t flip = 0) {
#if defined(__AVX512F__)
  if (__builtin_cpu_supports("avx512vbmi")) {
    UnpackByBytes<kOrder>(from, bits, granules, ahead, out, flip);
    return;
  }
#endif
  const uint64_t mask = (uint64_t{1} << bits) - 1;
  for (int64_t g = 0; g < granules; ++g, out += kGranule, from += 8 * bits) {
    __builtin_prefetch(from + ahead, 0, 2);
    uint8_t unpacked[kGranule];
    const uint8_t* natural = bits == 8 ? from : unpacked;
    for (int i = 0; bits != 8 && i < kGroup; ++i) {
      uint64_t word = 0;
      for (int b = 0; b < bits; ++b) {
        word |= static_cast<uint64_t>(from[i * bits + b]) << (8 * b);
      }
      uint64_t codes = 0;
#pragma GCC unroll 8
      for (int j = 0; j < kGroup; ++j) codes |= (word >> (j * bits) & mask) << (8 * j);
      std::memcpy(unpacked + i * kGroup, &codes, sizeof(codes));
    }
    if (kOrder == CodeOrder::kNatural) {
      std::memcpy(out, natural, kGranule);
    } else {
      OrderCodes<kOrder>(natural, out);
    }
    for (int i = 0; flip != 0 && i < kGranule; ++i) out[i] ^= flip;
  }
}

/// Where decoded vectors go: vector (or pair of them) u of granule g to out + (g · units + u) ·
/// stride.
struct GranuleOut {
  float* data;
  int64_t stride;
};

/// The levels of a granule's codes, in the order of its bytes. kBytes: table256 by bytes
/// (levels.h).
template <PlaneLevels kLevels, bool kBytes>
struct GranuleLevels {
  const QuantView& w;
  const LevelTables& tables;
  GranuleLevels(const QuantView& quant, const LevelTables& of) : w(quant), tables(of) {}
  LOWRANK_MEMBER_INLINE void Of(const uint8_t* codes, VecF (&out)[kPlaces]) const {
#pragma GCC unroll 16
    for (int p = 0; p < kPlaces; ++p) {
      out[p] = LevelsOf<kLevels>(w, tables, WidenBytes(codes + p * kVL));
    }
  }
};

template <bool kBytes>
struct GranuleLevels<PlaneLevels::kTable256, kBytes> {
  Levels<kBytes> levels;
  GranuleLevels(const QuantView&, const LevelTables& tables) : levels(tables.bytes) {}
  LOWRANK_MEMBER_INLINE void Of(const uint8_t* codes, VecF (&out)[kPlaces]) const {
#pragma GCC unroll 4
    for (int p = 0; p < kPlaces; p += 4) {
      VecF four[4];
      levels.Run(codes + p * kVL, four);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) out[p + i] = four[i];
    }
  }
};

template <CodeOrder kOrder, bool kAffine, PlaneLevels kLevels, bool kBytes>
static void WeightsOfCodes(const QuantView& w, const LevelTables& tables, const uint8_t* codes,
                           const ScaleRows& scales, int64_t row, int64_t granules, DType round_to,
                           GranuleOut out) {
  constexpr bool kPairs = kOrder == CodeOrder::kPairs;
  constexpr int kUnits = kPlaces / (kPairs ? 2 : 1);
  // Not in the natural order: a lane's places are of one part, and its two halves of the same.
  constexpr bool kSame = kOrder != CodeOrder::kNatural && kVL >= 8;
  const GranuleLevels<kLevels, kBytes> levels(w, tables);
  VecU part[kPlaces];
#pragma GCC unroll 16
  for (int p = 0; p < kPlaces; ++p) {
    VecU element;
#pragma GCC unroll 16
    for (int l = 0; l < kVL; ++l) {
      element[l] = static_cast<uint32_t>(ElementOfByte<kOrder>(p * kVL + l));
    }
    part[p] = element * SplatU(static_cast<uint32_t>(scales.layout.last) + 1) /
              static_cast<uint32_t>(kGranule);
  }
  for (int64_t g = 0; g < granules; ++g, codes += kGranule) {
    const float* scale = scales.At(row, g);
    const auto factors_at = [&](int p) __attribute__((always_inline)) {
      LaneFactors<kAffine> factors;
      factors.scale = PickOfFour(scale, part[p]);
      if constexpr (kAffine) {
        factors.zero = PickOfFour(scale + scales.layout.zeros, part[p]);
        factors.min = PickOfFour(scale + scales.layout.mins, part[p]);
      }
      return factors;
    };
    VecF weights[kPlaces];
    levels.Of(codes, weights);
    const LaneFactors<kAffine> first = factors_at(0);
#pragma GCC unroll 16
    for (int p = 0; p < kPlaces; ++p) {
      weights[p] = (kSame || p == 0 ? first : factors_at(p)).Apply(weights[p]);
    }
    float* to = out.data + g * kUnits * out.stride;
#pragma GCC unroll 16
    for (int u = 0; u < kUnits; ++u, to += out.stride) {
      if constexpr (kPairs) {
        StoreU(to, NeighboursBF16(weights[2 * u], weights[2 * u + 1]));
      } else {
        Store(to, RoundTo(round_to, weights[u]));
      }
    }
  }
}

/// Decodes granules of row `row` of w from column k0 on, at most a span of them, whose factors are
/// row `scale_row` of `scales`. Prefetches the codes of a later row.
template <CodeOrder kOrder>
static __attribute__((noinline)) void DecodeCodeGranules(const QuantView& w,
                                                         const LevelTables& tables, int64_t row,
                                                         int64_t k0, int64_t granules,
                                                         const ScaleRows& scales, int64_t scale_row,
                                                         int64_t rows_ahead, DType round_to,
                                                         GranuleOut out) {
  const Planes& planes = w.planes;
  const bool planar = w.planar();
  const int bits = planar ? planes.bits : 8;
  const int64_t row_bytes = planar ? planes.row_bytes : w.cols;
  alignas(64) uint8_t codes[kSpan];
  UnpackCodes<kOrder>(w.codes + row * row_bytes + k0 * bits / 8, bits, granules,
                      rows_ahead * row_bytes, codes);
  const bool affine = planar && IsAffine(planes);
  const auto decode = [&](auto is_affine, auto levels, auto bytes) {
    WeightsOfCodes<kOrder, is_affine(), levels(), bytes()>(w, tables, codes, scales, scale_row,
                                                           granules, round_to, out);
  };
  const auto by_levels = [&](auto is_affine) {
    constexpr std::integral_constant<PlaneLevels, PlaneLevels::kTable16> table16;
    if (bits < 4) {
      decode(is_affine, table16, std::false_type());
      return;
    }
    WithLevelRule(planes.rule, [&](auto levels) {
      if constexpr (levels() == PlaneLevels::kTable256) {
        WithLevels(tables.bytes, [&](auto bytes) { decode(is_affine, levels, bytes); });
      } else {
        decode(is_affine, levels, std::false_type());
      }
    });
  };
  if (affine) {
    by_levels(std::true_type());
  } else {
    by_levels(std::false_type());
  }
}

/// Units of a policy, by lanes.
template <bool kPairs>
constexpr CodeOrder kUnitOrder = kPairs ? CodeOrder::kPairs : CodeOrder::kLanes;

/// GranuleDecoder (granule.h) for codes that UnpackCodes has made bytes in the order of units, with
/// levels from a table of 16 or in a line. For vectors whose places are all of their lanes' parts.
template <bool kPairs, bool kAffine, PlaneLevels kLevels>
struct CodeDecoder {
  static constexpr int kUnits = kPlaces / (kPairs ? 2 : 1);
  static constexpr int64_t kCodeBytes = kGranule;
  static constexpr bool kLinear = kLevels == PlaneLevels::kLinear;
  Table16 levels;
  float first_level;
  LaneFactors<kAffine> factors;
  DType round_to;

  LOWRANK_MEMBER_INLINE void SetScale(const Table16& codebook, const float* scale,
                                      const FactorLayout& layout, DType round) {
    if constexpr (!kLinear) levels = codebook;
    round_to = round;
    VecU part;
#pragma GCC unroll 16
    for (int l = 0; l < kVL; ++l) {
      part[l] = static_cast<uint32_t>(ElementOfByte<kUnitOrder<kPairs>>(l));
    }
    part = part * SplatU(static_cast<uint32_t>(layout.last) + 1) / static_cast<uint32_t>(kGranule);
    factors.scale = PickOfFour(scale, part);
    if constexpr (kAffine) {
      factors.zero = PickOfFour(scale + layout.zeros, part);
      factors.min = PickOfFour(scale + layout.mins, part);
    }
  }
  LOWRANK_MEMBER_INLINE VecF At(const uint8_t* codes, int u) const {
    if constexpr (kPairs) {
      return AsFloat(
          NeighboursBF16(Weights(codes + 2 * u * kVL), Weights(codes + (2 * u + 1) * kVL)));
    } else {
      return RoundTo(round_to, Weights(codes + u * kVL));
    }
  }

 private:
  LOWRANK_MEMBER_INLINE VecF Weights(const uint8_t* codes) const {
    const VecU of = WidenBytes(codes);
    if constexpr (!kLinear) return factors.Apply(Lookup(levels, of));
    return factors.Apply(__builtin_convertvector(reinterpret_cast<VecI>(of), VecF) +
                         Splat(first_level));
  }
};

static int64_t DecodeWholeGranules(const QuantView& w, const LevelTables& tables, DType round_to,
                                   int64_t n, int64_t k, int64_t count, float* out) {
  if (GranulesOf(w) != Granules::kCodes || k % kGranule != 0) return 0;
  const int64_t granules = count / kGranule;
  if (granules == 0) return 0;
  float scratch[FactorScratch(1, kPlaneRun / kGranule + 1)];
  const ScaleRows scales = PartScales(w, n, 1, k, granules * kGranule, scratch);
  DecodeCodeGranules<CodeOrder::kNatural>(w, tables, n, k, granules, scales, 0, 0, round_to,
                                          {out, kVL});
  return granules * kGranule;
}

}  // namespace lowrank::cpu::LOWRANK_ISA
