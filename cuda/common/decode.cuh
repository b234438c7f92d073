/// Elements: the two 16-bit activation types, loads of any element type, the decode of 4-bit codes,
/// and the exact split of f32 into bf16 parts.
#pragma once

#include "cuda/gpu.cuh"
#include "native/host_device/params/gemm_mma.h"

namespace lowrank::gpu {

/// T = bf16.
struct ElementBF16T {
  static constexpr uint8_t kCode = kElementBF16;

  /// Both rounded to nearest, ties to even; `low` in the low half.
  LOWRANK_DEVICE uint32_t Pack(float low, float high) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&pair);
  }
  LOWRANK_DEVICE float Low(uint32_t pair) { return __uint_as_float(pair << 16); }
  LOWRANK_DEVICE float High(uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }
  LOWRANK_DEVICE void Mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    MmaBF16(d, a, b0, b1);
  }
};

/// T = f16.
struct ElementF16T {
  static constexpr uint8_t kCode = kElementF16;

  LOWRANK_DEVICE uint32_t Pack(float low, float high) {
    const __half2 pair = __floats2half2_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&pair);
  }
  LOWRANK_DEVICE float Low(uint32_t pair) {
    return __half2float(__ushort_as_half(static_cast<unsigned short>(pair & 0xffffu)));
  }
  LOWRANK_DEVICE float High(uint32_t pair) {
    return __half2float(__ushort_as_half(static_cast<unsigned short>(pair >> 16)));
  }
  LOWRANK_DEVICE void Mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    MmaF16(d, a, b0, b1);
  }
};

/// Element `index` of an array whose type is known at run time.
LOWRANK_DEVICE float LoadAny(const void* g_data, uint8_t dtype, int64_t index) {
  if (dtype == kElementF32) return static_cast<const float*>(g_data)[index];
  const uint32_t bits = static_cast<const uint16_t*>(g_data)[index];
  return dtype == kElementBF16 ? ElementBF16T::Low(bits) : ElementF16T::Low(bits);
}

/// kCount consecutive elements from `index`, one by one; those from `count` (at least 1) on are
/// zero. For these the last one is loaded again, so that no load waits for a branch.
template <int kCount>
LOWRANK_DEVICE void LoadEach(float (&r_value)[kCount], const void* g_data, uint8_t dtype,
                             int64_t index, int64_t count) {
  const int last = count < kCount ? static_cast<int>(count) - 1 : kCount - 1;
  if (dtype == kElementF32) {
    const float* g_from = static_cast<const float*>(g_data) + index;
#pragma unroll
    for (int q = 0; q < kCount; ++q) r_value[q] = g_from[min(q, last)];
  } else {
    const uint16_t* g_from = static_cast<const uint16_t*>(g_data) + index;
    const bool bf16 = dtype == kElementBF16;
#pragma unroll
    for (int q = 0; q < kCount; ++q) {
      const uint32_t bits = g_from[min(q, last)];
      r_value[q] = bf16 ? ElementBF16T::Low(bits) : ElementF16T::Low(bits);
    }
  }
#pragma unroll
  for (int q = 1; q < kCount; ++q) r_value[q] = q <= last ? r_value[q] : 0.0f;
}

/// Eight consecutive elements from `index`; those from `count` on are zero. `vector`: if count >=
/// 8, all eight may be read by 16-byte accesses.
LOWRANK_DEVICE void LoadEight(float (&r_value)[8], const void* g_data, uint8_t dtype, int64_t index,
                              int64_t count, bool vector) {
  if (vector && count >= 8) {
    if (dtype == kElementF32) {
      const float4* g_from =
          reinterpret_cast<const float4*>(static_cast<const float*>(g_data) + index);
      const float4 low = g_from[0];
      const float4 high = g_from[1];
      r_value[0] = low.x, r_value[1] = low.y, r_value[2] = low.z, r_value[3] = low.w;
      r_value[4] = high.x, r_value[5] = high.y, r_value[6] = high.z, r_value[7] = high.w;
      return;
    }
    const uint4 raw = *reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(g_data) + index);
    const uint32_t pairs[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      const bool bf16 = dtype == kElementBF16;
      r_value[2 * q] = bf16 ? ElementBF16T::Low(pairs[q]) : ElementF16T::Low(pairs[q]);
      r_value[2 * q + 1] = bf16 ? ElementBF16T::High(pairs[q]) : ElementF16T::High(pairs[q]);
    }
    return;
  }
  if (count > 0) {
    LoadEach(r_value, g_data, dtype, index, count);
    return;
  }
#pragma unroll
  for (int q = 0; q < 8; ++q) r_value[q] = 0.0f;
}

/// The 16 values that a 4-bit code can stand for in one block, rounded to T, as byte planes: the
/// low byte of entry e is byte e % 4 of low[e / 4], its high byte likewise.
///
/// Decoding by byte permutes costs 21 integer operations for 8 codes and no shared memory access; a
/// table in shared memory costs one wavefront per 32 codes, at 128 x 128 x 64 a quarter of the pipe
/// that ldmatrix needs. Building the table costs one operation per code for 32 codes, and gives
/// exactly round_T(codebook[code] · scale).
struct NibbleTable {
  uint32_t low[4];
  uint32_t high[4];
};

template <typename Element>
LOWRANK_DEVICE NibbleTable MakeNibbleTable(const float* s_codebook, float scale) {
  NibbleTable table;
#pragma unroll
  for (int q = 0; q < 4; ++q) {
    const float4 c = reinterpret_cast<const float4*>(s_codebook)[q];
    const uint32_t first = Element::Pack(c.x * scale, c.y * scale);
    const uint32_t second = Element::Pack(c.z * scale, c.w * scale);
    table.low[q] = __byte_perm(first, second, 0x6420);
    table.high[q] = __byte_perm(first, second, 0x7531);
  }
  return table;
}

/// The upper 16 bits, computed on the pipe of integer products.
LOWRANK_DEVICE uint32_t UpperHalf(uint32_t word) { return __dp2a_lo(word, 0x0100u, 0u); }

/// Decodes eight codes, element 2i in the high nibble of byte i, to eight values in order.
LOWRANK_DEVICE uint4 DecodeNibbles(const NibbleTable& table, uint32_t codes) {
  // A permute looks at three bits of a selector nibble: bytes from entries 0..7 and from 8..15,
  // then the fourth bit picks between them (selector nibble j is j, or j + 4).
  const uint32_t entry = codes & 0x77777777u;
  const uint32_t half = AndOr(codes >> 1, 0x44444444u, 0x32103210u);
  uint32_t pairs[4];
#pragma unroll
  for (int q = 0; q < 2; ++q) {
    const uint32_t e = q == 0 ? entry : UpperHalf(entry);
    const uint32_t h = q == 0 ? half : UpperHalf(half);
    const uint32_t low =
        Permute(Permute(table.low[0], table.low[1], e), Permute(table.low[2], table.low[3], e), h);
    const uint32_t high = Permute(Permute(table.high[0], table.high[1], e),
                                  Permute(table.high[2], table.high[3], e), h);
    pairs[2 * q] = Permute(low, high, 0x4051);
    pairs[2 * q + 1] = Permute(low, high, 0x6273);
  }
  return make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
}

}  // namespace lowrank::gpu
