/// Decodes weights straight from memory to the A operands of m16n8k16, for products of few tokens
/// (matmul_small_m_sm80.cu has the layout and the budget).
#pragma once

#include "cuda/common/decode.cuh"
#include "native/host_device/params/matmul_small_m.h"

namespace lowrank::gpu {

/// Word i of 16 bytes, with i known at compile time.
LOWRANK_DEVICE uint32_t Word(const uint4& raw, int i) {
  return i == 0 ? raw.x : i == 1 ? raw.y : i == 2 ? raw.z : raw.w;
}

/// The A operands of row g (half 0) or g + 8 for two products, from their eight values.
LOWRANK_DEVICE void SetRow(int half, const uint4& pairs, uint32_t (&a)[2][4]) {
  a[0][half] = pairs.x;
  a[0][half + 2] = pairs.y;
  a[1][half] = pairs.z;
  a[1][half + 2] = pairs.w;
}

/// Eight times the first code that has a finite value.
LOWRANK_DEVICE uint32_t FiniteCode(const float* codebook) {
  uint32_t code = 15;
#pragma unroll
  for (int i = 14; i >= 0; --i) code = isfinite(codebook[i]) ? static_cast<uint32_t>(i) : code;
  return code * 0x11111111u;
}

/// Tables and the decode of a lane's 16 bytes of two rows, one class a format:
///   Fill()                    by the whole block of threads, before a barrier
///   Padding()                 four bytes that stand for k past the end (x is zero there)
///   Prepare(i, scale)         what a step needs once for fragment i, two rows of these scales
///   Fragments(i, ..., u, a)   the A operands of products 2u and 2u + 1: elements 8u .. 8u + 7
template <SmallMFormat kFormat, typename Element, SmallMDecode kDecode>
class LaneDecoder;

/// Rows g by the table and rows g + 8 by byte permutes, or in every second fragment both the
/// same way: permutes relieve the shared memory pipe. Both give round_T(codebook[code] ·
/// scale).
template <typename Element, SmallMDecode kDecode>
class LaneDecoder<SmallMFormat::kCode4, Element, kDecode> {
 public:
  struct Prepared {
    float scale[2];
    NibbleTable table[2];  // of the rows that permutes decode
  };

  __device__ __forceinline__ LaneDecoder(unsigned char* s_table, const float* g_codebook)
      : s_pairs_(s_table), g_codebook_(g_codebook) {
#pragma unroll
    for (int i = 0; i < 16; ++i) codebook_[i] = g_codebook[i];
  }

  __device__ __forceinline__ void Fill() {
    // Entry (byte, lane): thread t writes bytes 16 i + t / 16, so its low nibble does not change.
    const float low = g_codebook_[threadIdx.x / 16];
    float2* s_entry = reinterpret_cast<float2*>(s_pairs_) + threadIdx.x;
#pragma unroll
    for (int i = 0; i < 16; ++i) s_entry[i * kSmallMThreads] = make_float2(codebook_[i], low);
  }

  /// 0 · x must be 0, so the code must have a finite value.
  __device__ __forceinline__ uint32_t Padding() const { return FiniteCode(codebook_); }

  __device__ __forceinline__ Prepared Prepare(int fragment, const float (&scale)[2]) const {
    Prepared rows = {{scale[0], scale[1]}, {}};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (ByPermutes(fragment, half))
        rows.table[half] = MakeNibbleTable<Element>(codebook_, scale[half]);
    }
    return rows;
  }

  __device__ __forceinline__ void Fragments(int fragment, const Prepared& rows,
                                            const uint4 (&raw)[2], int u,
                                            uint32_t (&a)[2][4]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t word = Word(raw[half], u);
      uint4 pairs;
      if (ByPermutes(fragment, half)) {
        pairs = DecodeNibbles(rows.table[half], word);
      } else {
        pairs = make_uint4(Pair(word, 0, rows.scale[half]), Pair(word, 1, rows.scale[half]),
                           Pair(word, 2, rows.scale[half]), Pair(word, 3, rows.scale[half]));
      }
      SetRow(half, pairs, a);
    }
  }

 private:
  LOWRANK_DEVICE bool ByPermutes(int fragment, int half) {
    if (kDecode == SmallMDecode::kFewLookups && fragment % 2 == 1) return true;
    if (kDecode == SmallMDecode::kMostLookups && fragment % 2 == 0) return false;
    return half == 1;
  }

  /// The two values of a byte of codes. A dot product of bytes selects the byte and makes it the
  /// offset of its entry for this lane at once, in the pipe of integer products.
  __device__ __forceinline__ uint32_t Pair(uint32_t word, int byte, float scale) const {
    const uint32_t at = __dp4a(word, 128u << (8 * byte), threadIdx.x % 16 * 8);
    const float2 level = *reinterpret_cast<const float2*>(s_pairs_ + at);
    return Element::Pack(level.x * scale, level.y * scale);
  }

  unsigned char* const s_pairs_;  // [256][16] float2
  const float* const g_codebook_;
  alignas(16) float codebook_[16];
};

/// Both rows by byte permutes, for when x takes the time of shared memory. The codebook is in
/// registers, or in shared memory if accumulators need those.
template <typename Element, bool kShared>
class PermuteDecoder {
 public:
  struct Prepared {
    NibbleTable table[2];
  };

  __device__ __forceinline__ PermuteDecoder(unsigned char* s_table, const float* g_codebook)
      : s_codebook_(reinterpret_cast<float*>(s_table)), g_codebook_(g_codebook) {
    if constexpr (!kShared) {
#pragma unroll
      for (int i = 0; i < 16; ++i) codebook_[i] = g_codebook[i];
    }
  }

  __device__ __forceinline__ void Fill() {
    if (kShared && threadIdx.x / 16 == 0) s_codebook_[threadIdx.x] = g_codebook_[threadIdx.x];
  }

  __device__ __forceinline__ uint32_t Padding() const { return FiniteCode(Codebook()); }

  __device__ __forceinline__ Prepared Prepare(int, const float (&scale)[2]) const {
    return Prepared{{MakeNibbleTable<Element>(Codebook(), scale[0]),
                     MakeNibbleTable<Element>(Codebook(), scale[1])}};
  }

  __device__ __forceinline__ void Fragments(int, const Prepared& rows, const uint4 (&raw)[2], int u,
                                            uint32_t (&a)[2][4]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      SetRow(half, DecodeNibbles(rows.table[half], Word(raw[half], u)), a);
    }
  }

 private:
  __device__ __forceinline__ const float* Codebook() const {
    return kShared ? s_codebook_ : codebook_;
  }

  float* const s_codebook_;
  const float* const g_codebook_;
  alignas(16) float codebook_[kShared ? 4 : 16];
};

template <typename Element>
class LaneDecoder<SmallMFormat::kCode4, Element, SmallMDecode::kPermutes>
    : public PermuteDecoder<Element, false> {
  using PermuteDecoder<Element, false>::PermuteDecoder;
};
template <typename Element>
class LaneDecoder<SmallMFormat::kCode4, Element, SmallMDecode::kSharedPermutes>
    : public PermuteDecoder<Element, true> {
  using PermuteDecoder<Element, true>::PermuteDecoder;
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

  __device__ __forceinline__ Prepared Prepare(int, const float (&scale)[2]) const {
    return Prepared{{scale[0], scale[1]}};
  }

  __device__ __forceinline__ void Fragments(int, const Prepared& rows, const uint4 (&raw)[2], int u,
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
  __device__ __forceinline__ Prepared Prepare(int, const float (&)[2]) const { return Prepared{}; }
  __device__ __forceinline__ void Fragments(int, const Prepared&, const uint4 (&raw)[2], int,
                                            uint32_t (&a)[2][4]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) SetRow(half, raw[half], a);
  }
};

}  // namespace lowrank::gpu
