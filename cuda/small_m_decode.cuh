/// The decode of weights straight from memory to the A operands of m16n8k16, for products of few
/// tokens (matmul_small_m_sm80.cu has the layout and the budget).
#pragma once

#include "cuda/decode.cuh"
#include "cuda/params/matmul_small_m.h"

namespace lowrank::gpu {

/// Word i of 16 bytes, i known when this is compiled.
LOWRANK_DEVICE uint32_t Word(const uint4& raw, int i) {
  return i == 0 ? raw.x : i == 1 ? raw.y : i == 2 ? raw.z : raw.w;
}

/// Tables and the decode of a lane's 16 bytes of two rows, one class a format:
///   Fill()                    by the whole block of threads, before a barrier
///   Padding()                 four bytes that stand for k past the end (x is zero there)
///   Prepare(scale)            what a step needs once for two rows of these scales
///   Fragments(..., u, a)      the A operands of products 2u and 2u + 1: elements 8u .. 8u + 7
template <SmallMFormat kFormat, typename Element, SmallMDecode kDecode>
class LaneDecoder;

/// Row g by the table, row g + 8 by byte permutes: half of the lookups leave the shared memory pipe
/// to the integer one, which has as much room. Both give round_T(codebook[code] · scale).
template <typename Element, SmallMDecode kDecode>
class LaneDecoder<SmallMFormat::kCode4, Element, kDecode> {
  static constexpr bool kInRegisters = kDecode == SmallMDecode::kHalfLookupsRegisters;

 public:
  struct Prepared {
    float scale;
    NibbleTable table;
  };

  __device__ __forceinline__ LaneDecoder(unsigned char* s_table, const float* g_codebook)
      : s_pairs_(reinterpret_cast<float2*>(s_table)),
        s_codebook_(reinterpret_cast<float*>(s_table + kSmallMPairBytes)),
        g_codebook_(g_codebook) {
    if constexpr (kInRegisters) {
#pragma unroll
      for (int i = 0; i < 16; ++i) codebook_[i] = g_codebook[i];
    }
  }

  __device__ __forceinline__ void Fill() {
    // Entry (byte, lane): thread t writes bytes 16 i + t / 16, so its low nibble does not change.
    const float low = g_codebook_[threadIdx.x / 16];
    if (!kInRegisters && threadIdx.x % 16 == 0) s_codebook_[threadIdx.x / 16] = low;
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      s_pairs_[i * static_cast<int>(kSmallMThreads) + static_cast<int>(threadIdx.x)] =
          make_float2(g_codebook_[i], low);
    }
  }

  /// 0 · x must be 0, so the code is one of a finite value.
  __device__ __forceinline__ uint32_t Padding() const {
    uint32_t code = 0;
    while (code < 15 && !isfinite(g_codebook_[code])) ++code;
    return code * 0x11111111u;
  }

  __device__ __forceinline__ Prepared Prepare(const float (&scale)[2]) const {
    if constexpr (kInRegisters) {
      return Prepared{scale[0], MakeNibbleTable<Element>(codebook_, scale[1])};
    } else {
      return Prepared{scale[0], MakeNibbleTable<Element>(s_codebook_, scale[1])};
    }
  }

  __device__ __forceinline__ void Fragments(const Prepared& rows, const uint4 (&raw)[2], int u,
                                            uint32_t (&a)[2][4]) const {
    const uint32_t word = Word(raw[0], u);
    const uint4 high = DecodeNibbles(rows.table, Word(raw[1], u));
    a[0][0] = Pair(word & 255u, rows.scale);
    a[0][1] = high.x;
    a[0][2] = Pair((word >> 8) & 255u, rows.scale);
    a[0][3] = high.y;
    a[1][0] = Pair((word >> 16) & 255u, rows.scale);
    a[1][1] = high.z;
    a[1][2] = Pair(word >> 24, rows.scale);
    a[1][3] = high.w;
  }

 private:
  __device__ __forceinline__ uint32_t Pair(uint32_t byte, float scale) const {
    const float2 level = s_pairs_[byte * 16 + threadIdx.x % 16];
    return Element::Pack(level.x * scale, level.y * scale);
  }

  float2* const s_pairs_;
  float* const s_codebook_;
  const float* const g_codebook_;
  alignas(16) float codebook_[kInRegisters ? 16 : 4];
};

/// Both rows by byte permutes, the codebook in registers: where x takes the shared memory's time.
template <typename Element>
class LaneDecoder<SmallMFormat::kCode4, Element, SmallMDecode::kPermutes> {
 public:
  struct Prepared {
    NibbleTable table[2];
  };

  __device__ __forceinline__ LaneDecoder(unsigned char*, const float* g_codebook) {
#pragma unroll
    for (int i = 0; i < 16; ++i) codebook_[i] = g_codebook[i];
  }

  __device__ __forceinline__ void Fill() {}

  __device__ __forceinline__ uint32_t Padding() const {
    uint32_t code = 15;
#pragma unroll
    for (int i = 14; i >= 0; --i) code = isfinite(codebook_[i]) ? static_cast<uint32_t>(i) : code;
    return code * 0x11111111u;
  }

  __device__ __forceinline__ Prepared Prepare(const float (&scale)[2]) const {
    return Prepared{{MakeNibbleTable<Element>(codebook_, scale[0]),
                     MakeNibbleTable<Element>(codebook_, scale[1])}};
  }

  __device__ __forceinline__ void Fragments(const Prepared& rows, const uint4 (&raw)[2], int u,
                                            uint32_t (&a)[2][4]) const {
    const uint4 low = DecodeNibbles(rows.table[0], Word(raw[0], u));
    const uint4 high = DecodeNibbles(rows.table[1], Word(raw[1], u));
    a[0][0] = low.x;
    a[0][1] = high.x;
    a[0][2] = low.y;
    a[0][3] = high.y;
    a[1][0] = low.z;
    a[1][1] = high.z;
    a[1][2] = low.w;
    a[1][3] = high.w;
  }

 private:
  alignas(16) float codebook_[16];
};

template <typename Element, SmallMDecode kDecode>
class LaneDecoder<SmallMFormat::kCode8, Element, kDecode> {
 public:
  struct Prepared {
    float scale[2];
  };

  __device__ __forceinline__ LaneDecoder(unsigned char* s_table, const float* g_codebook)
      : s_levels_(reinterpret_cast<float*>(s_table)), g_codebook_(g_codebook) {}

  __device__ __forceinline__ void Fill() {
#pragma unroll 8
    for (int i = 0; i < 32; ++i) {
      const int at = i * static_cast<int>(kSmallMThreads) + static_cast<int>(threadIdx.x);
      s_levels_[at] = g_codebook_[at / 32];
    }
  }

  __device__ __forceinline__ uint32_t Padding() const {
    uint32_t code = 0;
    while (code < 255 && !isfinite(g_codebook_[code])) ++code;
    return code * 0x01010101u;
  }

  __device__ __forceinline__ Prepared Prepare(const float (&scale)[2]) const {
    return Prepared{{scale[0], scale[1]}};
  }

  __device__ __forceinline__ void Fragments(const Prepared& rows, const uint4 (&raw)[2], int u,
                                            uint32_t (&a)[2][4]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        const uint32_t word = Word(raw[half], 2 * u + part);
        a[part][half] = Pair(word & 255u, (word >> 8) & 255u, rows.scale[half]);
        a[part][half + 2] = Pair((word >> 16) & 255u, word >> 24, rows.scale[half]);
      }
    }
  }

 private:
  __device__ __forceinline__ uint32_t Pair(uint32_t first, uint32_t second, float scale) const {
    const uint32_t lane = threadIdx.x % 32;
    return Element::Pack(s_levels_[first * 32 + lane] * scale,
                         s_levels_[second * 32 + lane] * scale);
  }

  float* const s_levels_;
  const float* const g_codebook_;
};

template <typename Element, SmallMDecode kDecode>
class LaneDecoder<SmallMFormat::kDense, Element, kDecode> {
 public:
  struct Prepared {};

  __device__ __forceinline__ LaneDecoder(unsigned char*, const float*) {}
  __device__ __forceinline__ void Fill() {}
  __device__ __forceinline__ uint32_t Padding() const { return 0; }
  __device__ __forceinline__ Prepared Prepare(const float (&)[2]) const { return Prepared{}; }
  __device__ __forceinline__ void Fragments(const Prepared&, const uint4 (&raw)[2], int,
                                            uint32_t (&a)[2][4]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      a[0][half] = raw[half].x;
      a[0][half + 2] = raw[half].y;
      a[1][half] = raw[half].z;
      a[1][half + 2] = raw[half].w;
    }
  }
};

}  // namespace lowrank::gpu
