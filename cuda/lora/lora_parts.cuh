/// Numbers as sums of bf16 parts, so that one tensor-core instruction multiplies every dtype
/// exactly.
///
/// bf16 has the exponents of f32 and 8 significant bits. Cutting a number off after 8 bits, and the
/// rest after 8 more, writes bf16 as one part, f16 (11 bits) as two and f32 (24 bits) as three,
/// exactly; below 2^-110 the last parts leave the range of bf16, with an error of at most 2^-134.
/// The product of two bf16 is exact in f32, so a product of parts loses only what is left out on
/// purpose: third part times third part, below 2^-30 of the whole.
///
/// The parts of a non-finite number would include NaN (∞ - ∞), and ∞ times a zero part of a finite
/// number is NaN where the whole product is ∞. Therefore only the first part of a non-finite number
/// is kept, and infinities and NaNs only enter products of two first parts; in all other products
/// they count as zero (Finite).
#pragma once

#include "cuda/gpu.cuh"
#include "cuda/ptx.cuh"
#include "native/host_device/params/lora_shrink.h"

namespace lowrank::gpu {

/// An element type of the large operand, by its bits.
struct LoraF32Tag {
  static constexpr int kBytes = 4;
  static constexpr int kParts = 3;
};
struct LoraBF16Tag {
  static constexpr int kBytes = 2;
  static constexpr int kParts = 1;
};
struct LoraF16Tag {
  static constexpr int kBytes = 2;
  static constexpr int kParts = 2;
};

/// Do the products of a step start from zero, so that an ordinary addition takes their sum to the
/// sums so far? For x of f32, whose sums are promised as those of f32 arithmetic.
template <int kParts>
constexpr bool kSumsFromZero = kParts == LoraF32Tag::kParts;

LOWRANK_DEVICE int PartsOf(int32_t element) {
  return element == kLoraF32 ? 3 : element == kLoraF16 ? 2 : 1;
}

LOWRANK_DEVICE float BitsToFloat(uint32_t bits, int32_t element) {
  return element == kLoraBF16 ? __uint_as_float(bits << 16)
                              : __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
}

/// Is either half of the word (two bf16, or f16 with its own mask) infinite or NaN? Then the
/// exponent's carry sets bit 15 or 31 of the result.
LOWRANK_DEVICE uint32_t NonFinitePair(uint32_t pair) {
  return ((pair & 0x7f807f80u) + 0x00800080u) & 0x80008000u;
}
LOWRANK_DEVICE uint32_t NonFinite(float value) {
  return ((__float_as_uint(value) & 0x7fffffffu) + 0x00800000u) & 0x80000000u;
}

/// Two bf16 with non-finite ones replaced by zero.
LOWRANK_DEVICE uint32_t FinitePair(uint32_t pair) {
  const uint32_t bad = NonFinitePair(pair) >> 15;
  return pair & ~(bad * 0xffffu);
}

/// The upper halves of two floats as a pair, `first` in the low half.
LOWRANK_DEVICE uint32_t UpperHalves(float first, float second) {
  return __byte_perm(__float_as_uint(first), __float_as_uint(second), 0x7632);
}
LOWRANK_DEVICE float UpperHalf(float value) {
  return __uint_as_float(__float_as_uint(value) & 0xffff0000u);
}
/// A NaN stays a NaN even if its upper half alone would be an infinity.
LOWRANK_DEVICE float QuietNaN(float value) {
  return value != value ? __uint_as_float(__float_as_uint(value) | 0x00400000u) : value;
}

/// The kParts parts of two finite numbers.
template <int kParts>
LOWRANK_DEVICE void SplitFinitePair(float first, float second, uint32_t (&parts)[kParts]) {
  parts[0] = UpperHalves(first, second);
#pragma unroll
  for (int part = 1; part < kParts; ++part) {
    first -= UpperHalf(first);
    second -= UpperHalf(second);
    parts[part] = UpperHalves(first, second);
  }
}

/// The parts of any two numbers: only the first part of a non-finite one, the same as above for
/// finite ones. Without a branch, since it is written out wherever a product has this case.
template <int kParts>
LOWRANK_DEVICE void SplitAnyPair(float first, float second, uint32_t (&parts)[kParts]) {
  const float finite_first = NonFinite(first) == 0 ? first : 0.0f;
  const float finite_second = NonFinite(second) == 0 ? second : 0.0f;
  SplitFinitePair(finite_first, finite_second, parts);
  parts[0] = UpperHalves(QuietNaN(first), QuietNaN(second));
}

/// The same, but fast if both are finite.
template <int kParts>
LOWRANK_DEVICE void SplitPair(float first, float second, uint32_t (&parts)[kParts]) {
  if ((NonFinite(first) | NonFinite(second)) == 0) {
    SplitFinitePair(first, second, parts);
  } else {
    SplitAnyPair(first, second, parts);
  }
}

/// A word of two 16-bit elements as parts: one if they are bf16, else those of f16.
template <int kParts>
LOWRANK_DEVICE void SplitWord(uint32_t word, uint32_t (&parts)[kParts]) {
  if constexpr (kParts == 1) {
    parts[0] = word;
  } else {
    SplitPair(BitsToFloat(word & 0xffffu, kLoraF16), BitsToFloat(word >> 16, kLoraF16), parts);
  }
}

/// acc_of(i) += a[i] · factor for the fragments i: `a` is 16 x 16 as parts, `factor` the four
/// elements of a lane's column in mma's B layout, of a dtype with `factor_parts`. The order is the
/// same whether everything is finite or not, and so are the bits of what is finite.
///
/// A tensor core cuts its sum off toward zero at each product, and f32 by f32 has eight of them for
/// each 16 of the sum. In sums that start from zero (kSumsFromZero) the small products come first:
/// only the last product meets numbers of full size, and acc_of(i) is rounded to nearest.
template <bool kAllFinite, int kHeld, int kParts, typename AccOf>
LOWRANK_DEVICE void MultiplyParts(const uint32_t (&a)[kHeld][kParts][4], const float (&factor)[4],
                                  int factor_parts, const AccOf& acc_of) {
  uint32_t low[3];
  uint32_t high[3];
  if constexpr (kAllFinite) {
    SplitFinitePair(factor[0], factor[1], low);
    SplitFinitePair(factor[2], factor[3], high);
  } else {
    SplitAnyPair(factor[0], factor[1], low);
    SplitAnyPair(factor[2], factor[3], high);
  }
  const auto multiply_first_parts = [&](const auto& sum_of) {
#pragma unroll
    for (int held = 0; held < kHeld; ++held) MmaBF16(sum_of(held), a[held][0], low[0], high[0]);
  };
  // Only first parts can be an infinity or NaN, which only their own product may meet.
  const auto multiply_other_parts = [&](const auto& sum_of) {
    uint32_t finite[kHeld][4];
    uint32_t finite_low = low[0];
    uint32_t finite_high = high[0];
    if constexpr (!kAllFinite) {
      finite_low = FinitePair(low[0]);
      finite_high = FinitePair(high[0]);
#pragma unroll
      for (int held = 0; held < kHeld; ++held) {
#pragma unroll
        for (int i = 0; i < 4; ++i) finite[held][i] = FinitePair(a[held][0][i]);
      }
    }
#pragma unroll
    for (int factor_part = 0; factor_part < 3; ++factor_part) {
      if (factor_part >= factor_parts) continue;
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        if (part + factor_part == 0 || part + factor_part > 3) continue;
#pragma unroll
        for (int held = 0; held < kHeld; ++held) {
          const auto multiply = [&](const uint32_t(&x)[4]) {
            MmaBF16(sum_of(held), x, factor_part == 0 ? finite_low : low[factor_part],
                    factor_part == 0 ? finite_high : high[factor_part]);
          };
          if (kAllFinite || part > 0) {
            multiply(a[held][part]);
          } else {
            multiply(finite[held]);
          }
        }
      }
    }
  };
  if constexpr (!kSumsFromZero<kParts>) {
    multiply_first_parts(acc_of);
    multiply_other_parts(acc_of);
  } else {
    float sums[kHeld][4] = {};
    const auto sum_of = [&](int held) -> float(&)[4] { return sums[held]; };
    multiply_other_parts(sum_of);
    multiply_first_parts(sum_of);
#pragma unroll
    for (int held = 0; held < kHeld; ++held) {
#pragma unroll
      for (int i = 0; i < 4; ++i) acc_of(held)[i] += sums[held][i];
    }
  }
}

/// Word i of 16 bytes, with i known at compile time.
LOWRANK_DEVICE uint32_t WordOf(const uint4& words, int i) {
  return i == 0 ? words.x : i == 1 ? words.y : i == 2 ? words.z : words.w;
}

/// A kernel for every type and rank tile: X(name, T, ranks, blocks per multiprocessor).
#define LOWRANK_LORA_TILES(X) \
  X(f32, LoraF32Tag, 16, 1)   \
  X(f32, LoraF32Tag, 32, 1)   \
  X(bf16, LoraBF16Tag, 16, 2) \
  X(bf16, LoraBF16Tag, 32, 1) \
  X(f16, LoraF16Tag, 16, 2)   \
  X(f16, LoraF16Tag, 32, 1)

}  // namespace lowrank::gpu
