/// Codes of one block of values: code = rank_to_code[#(thresholds < v · (1 / absmax))], all in f32.
///
/// 4 bits     the 15 thresholds stay in registers: a binary search of four comparisons in all
///            lanes, then two lanes make a byte
/// 8 bits     the 255 thresholds are dense near zero, like floats: the leading bits of v (sign,
///            exponent, six of the mantissa) select a bucket that contains at most one threshold,
///            so one comparison is left. A bucket's entry has its threshold and the codes on both
///            sides. It is fetched lane by lane, which costs less than gathers. A custom codebook
///            may need more comparisons; the table knows how many. With AVX-512 the ranks of the
///            dynamic map are computed (piecewise_rank.h), and the few undecided ones are found by
///            bucket
/// Numerics   a block whose 1 / absmax overflows (zeros, or absmax < 2^-128) holds zero_code, as in
///            bitsandbytes
#pragma once

#include "native/cpu/kernels/decode/piecewise_rank.h"
#include "native/cpu/kernels/tile/gemm.h"

namespace lowrank::cpu::LOWRANK_ISA {

/// Ranks among up to 255 ascending thresholds, by bucket.
struct BucketSearch {
  static constexpr int kShift = 23 - 6;
  // From 2^-62 to 1. Values nearer to zero share the first bucket, those beyond 1 the last.
  static constexpr uint32_t kMostBuckets = 63u << 6;
  static constexpr uint32_t kTop = 0x3f800000u >> kShift;

  /// The decision in a bucket, if it takes one comparison.
  struct Entry {
    float threshold;
    uint32_t codes;  // the byte at or below the threshold, then the one above
  };
  Entry entries[2 * kMostBuckets];  // [negative][bucket], for as many buckets as there are

  float thresholds[256];           // infinite after the last one
  uint8_t first[2][kMostBuckets];  // [negative][bucket]: thresholds below the whole bucket
  uint32_t low;                    // leading bits of the smallest magnitude of bucket 1
  uint32_t buckets;
  int steps;  // comparisons for the fullest bucket
  PiecewiseRank lines;

  /// Magnitudes of bucket b start here.
  float From(uint32_t b) const { return b == 0 ? 0.0f : FloatOf((low + b - 1) << kShift); }
  /// They end before this.
  float To(uint32_t b) const {
    return b + 1 == buckets ? __builtin_inff() : FloatOf((low + b) << kShift);
  }
};

static inline void FillBuckets(const float* thresholds, int count, const uint8_t* rank_to_code,
                               BucketSearch* search) {
  uint32_t smallest = 0x3f800000u;
  for (int i = 0; i < 256; ++i) {
    search->thresholds[i] = i < count ? thresholds[i] : __builtin_inff();
    const uint32_t magnitude = i < count ? BitsOf(thresholds[i]) & 0x7fffffffu : 0;
    if (magnitude != 0 && magnitude < smallest) smallest = magnitude;
  }
  constexpr uint32_t kLowest = BucketSearch::kTop - (BucketSearch::kMostBuckets - 2);
  search->low = smallest >> BucketSearch::kShift;
  if (search->low < kLowest) search->low = kLowest;
  search->buckets = BucketSearch::kTop - search->low + 2;
  search->steps = 0;
  const uint32_t last = search->buckets - 1;
  // From the most negative bucket to the most positive one: both counts only grow.
  int below = 0;
  int up_to = 0;
  for (uint32_t i = 0; i <= 2 * last + 1; ++i) {
    const bool negative = i <= last;
    const uint32_t b = negative ? last - i : i - last - 1;
    const float from = search->From(b);
    const float to = search->To(b);
    // Values are in (-to, -from], or in [from, to).
    while (below < count && (negative ? thresholds[below] <= -to : thresholds[below] < from)) {
      ++below;
    }
    while (up_to < count && thresholds[up_to] < (negative ? -from : to)) ++up_to;
    search->first[negative ? 1 : 0][b] = static_cast<uint8_t>(below);
    const uint32_t above = rank_to_code[below < count ? below + 1 : below];
    search->entries[(negative ? search->buckets : 0) + b] = {search->thresholds[below],
                                                             rank_to_code[below] | above << 8};
    if (up_to - below > search->steps) search->steps = up_to - below;
  }
  search->lines.fits = false;
  if (kRanksByLines) FitLines(thresholds, count, rank_to_code, &search->lines);
}

/// A format's thresholds and codes, arranged for its search.
struct Encoder {
  const FormatRow* format;
  // 4 bits: the threshold that splits the ranks at each step, by the rank so far. Infinite after
  // the last threshold.
  float middle;
  Table16 quarters, eighths, sixteenths;
  Table16 codes;               // bit patterns
  const BucketSearch* search;  // 8 bits
};

/// Fills `search`, which must live as long as the encoder.
LOWRANK_INLINE Encoder MakeEncoder(const FormatRow& format, BucketSearch* search) {
  Encoder encoder;
  encoder.format = &format;
  encoder.search = search;
  if (format.bits == 8) {
    FillBuckets(format.thresholds, format.threshold_count, format.rank_to_code, search);
    return encoder;
  }
  float thresholds[20];
  float codes[16];
  for (int i = 0; i < 20; ++i) {
    thresholds[i] = i < format.threshold_count ? format.thresholds[i] : __builtin_inff();
  }
  for (int i = 0; i < 16; ++i) {
    codes[i] = FloatOf(format.rank_to_code[i <= format.threshold_count ? i : 0]);
  }
  encoder.middle = thresholds[7];
  encoder.quarters = LoadTable(thresholds + 3);
  encoder.eighths = LoadTable(thresholds + 1);
  encoder.sixteenths = LoadTable(thresholds);
  encoder.codes = LoadTable(codes);
  return encoder;
}

/// 4-bit codes of kVL normalised values.
LOWRANK_INLINE VecU EncodeNibbles(const Encoder& encoder, VecF normalised) {
  const bool sign_magnitude = encoder.format->sign_magnitude;
  VecF v = normalised;
  if (sign_magnitude) v = AsFloat(Bits(normalised) & 0x7fffffffu);
  VecU rank = AddWhereGreater(VecU{}, v, Splat(encoder.middle), 8);
  rank = AddWhereGreater(rank, v, Lookup(encoder.quarters, rank), 4);
  rank = AddWhereGreater(rank, v, Lookup(encoder.eighths, rank), 2);
  rank = AddWhereGreater(rank, v, Lookup(encoder.sixteenths, rank), 1);
  VecU code = Bits(Lookup(encoder.codes, rank));
  if (sign_magnitude) code = AddWhereGreater(code, VecF{}, normalised, 8);
  return code;
}

/// Two codes per byte, the first in the high nibble. An odd number is completed by zero_code.
LOWRANK_INLINE void EncodeNibbleBlock(const Encoder& encoder, const float* in, int64_t count,
                                      float inverse, uint8_t* packed) {
  int64_t i = 0;
  for (; i + kVL <= count; i += kVL) {
    StorePairsAsBytes(packed + i / 2, EncodeNibbles(encoder, Load(in + i) * inverse));
  }
  if (i == count) return;
  float rest[kVL] = {};
  std::memcpy(rest, in + i, static_cast<size_t>(count - i) * sizeof(float));
  uint8_t bytes[kVL / 2];
  StorePairsAsBytes(bytes, EncodeNibbles(encoder, Load(rest) * inverse));
  if ((count & 1) != 0) {
    uint8_t& last = bytes[(count - i) / 2];
    last = static_cast<uint8_t>((last & 0xf0) | encoder.format->zero_code);
  }
  std::memcpy(packed + i / 2, bytes, static_cast<size_t>(count - i + 1) / 2);
}

/// The bucket of each of kVL normalised values.
LOWRANK_INLINE VecI BucketOf(const BucketSearch& search, VecF values) {
  // Below the first bucket the difference is negative.
  const VecI offset = reinterpret_cast<VecI>((Bits(values) & 0x7fffffffu) >> search.kShift) -
                      static_cast<int32_t>(search.low) + 1;
  const VecI low = offset > 0 ? offset : VecI{};
  const int32_t last = static_cast<int32_t>(search.buckets) - 1;
  return low < last ? low : VecI{} + last;
}

// Number of 8-bit codes that are looked up together.
constexpr int kByteRun = 64;

/// Up to kByteRun values, if a bucket needs one comparison. Three loops, each over all values:
/// reading a vector while its lanes are still being written would stall.
LOWRANK_INLINE void EncodeByteRun(const BucketSearch& search, const float* in, float inverse,
                                  uint8_t* codes) {
  alignas(64) int32_t entry[kByteRun];
  alignas(64) BucketSearch::Entry picked[kByteRun];
  for (int i = 0; i < kByteRun; i += kVL) {
    const VecF values = Load(in + i) * inverse;
    const VecI negative = reinterpret_cast<VecI>(values) < 0;
    StoreU(entry + i, reinterpret_cast<VecU>(BucketOf(search, values) +
                                             (negative & static_cast<int32_t>(search.buckets))));
  }
#pragma GCC unroll 8
  for (int i = 0; i < kByteRun; ++i) picked[i] = search.entries[entry[i]];
  for (int i = 0; i < kByteRun; i += kVL) {
    const VecF low_half = Load(picked + i);
    const VecF high_half = Load(picked + i + kVL / 2);
    const VecF threshold = EveryOther<0>(low_half, high_half, Lanes());
    const VecU both = Bits(EveryOther<1>(low_half, high_half, Lanes()));
    const VecF values = Load(in + i) * inverse;
    const VecU code = both >> (reinterpret_cast<VecU>(values > threshold) & 8u);
    StoreBytes(codes + i, code);
  }
}

#if defined(__AVX512F__)
/// The same if the thresholds are on lines.
LOWRANK_INLINE void EncodeRunByLines(const BucketSearch& search, const float* in, float inverse,
                                     uint8_t* codes) {
  const LineTables lines(search.lines);
  __mmask16 unsure = 0;
#pragma GCC unroll 4
  for (int i = 0; i < kByteRun; i += kVL) {
    StoreBytes(codes + i, reinterpret_cast<VecU>(lines.Codes(Load(in + i) * inverse, &unsure)));
  }
  if (unsure != 0) EncodeByteRun(search, in, inverse, codes);
}
#endif

LOWRANK_INLINE void EncodeByteBlock(const Encoder& encoder, const float* in, int64_t count,
                                    float inverse, uint8_t* codes) {
  const BucketSearch& search = *encoder.search;
  const uint8_t* rank_to_code = encoder.format->rank_to_code;
  int64_t i = 0;
  if (search.steps <= 1) {
#if defined(__AVX512F__)
    if (search.lines.fits) {
      for (; i + kByteRun <= count; i += kByteRun) {
        EncodeRunByLines(search, in + i, inverse, codes + i);
      }
    }
#endif
    for (; i + kByteRun <= count; i += kByteRun) EncodeByteRun(search, in + i, inverse, codes + i);
  }
  for (; i < count; i += kVL) {
    VecF values = {};
    const int64_t lanes = Min(kVL, count - i);
    std::memcpy(&values, in + i, static_cast<size_t>(lanes) * sizeof(float));
    values = values * inverse;
    const VecI bucket = BucketOf(search, values);
    for (int64_t j = 0; j < lanes; ++j) {
      const uint8_t* first = search.first[BitsOf(values[j]) >> 31];
      uint32_t rank = first[bucket[j]];
      for (int step = 0; step < search.steps; ++step) {
        rank += values[j] > search.thresholds[rank] ? 1 : 0;
      }
      codes[i + j] = rank_to_code[rank];
    }
  }
}

/// Codes of `count` f32 values of one block with this absmax, one or two per byte.
LOWRANK_INLINE void EncodeBlock(const Encoder& encoder, const float* in, int64_t count,
                                float absmax, uint8_t* codes) {
  const FormatRow& format = *encoder.format;
  const float inverse = 1.0f / absmax;
  if (inverse > 3.402823466e38f) {
    const int both = format.bits == 8 ? format.zero_code : format.zero_code * 17;
    std::memset(codes, both, static_cast<size_t>(format.bits == 8 ? count : (count + 1) / 2));
  } else if (format.bits == 8) {
    EncodeByteBlock(encoder, in, count, inverse, codes);
  } else {
    EncodeNibbleBlock(encoder, in, count, inverse, codes);
  }
}

/// max |v| as f32 bits, which have the order of the magnitudes, with Inf and NaN last.
LOWRANK_INLINE uint32_t MaxMagnitude(const float* in, int64_t count) {
  VecU max = {};
  int64_t i = 0;
  for (; i + kVL <= count; i += kVL) {
    const VecU bits = Bits(Load(in + i)) & 0x7fffffffu;
    max = bits > max ? bits : max;
  }
  uint32_t result = MaxLane(max);
  for (; i < count; ++i) {
    const uint32_t bits = BitsOf(in[i]) & 0x7fffffffu;
    result = bits > result ? bits : result;
  }
  return result;
}

}  // namespace lowrank::cpu::LOWRANK_ISA
