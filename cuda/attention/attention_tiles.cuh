/// What the passes of attention share: tiles of rows in shared memory, and the two products over
/// them, on tensor cores (MmaHeads) or on the CUDA cores (SimtHeads).
///
/// A tile is rows of kDim elements of T, 16-byte pieces swizzled. A warp's sums lie as an
/// m16n8 fragment has them: of 16 x 8 elements lane 4 g + t has (g, 2 t), (g, 2 t + 1), (g + 8, 2
/// t) and (g + 8, 2 t + 1), in both kinds, so that softmax, masks and stores are the same code.
///
///   Scores      s[i, j] = Σ_d a[i, d] · b[j, d]     a and b tiles
///   Accumulate  o[i, d] += Σ_j w[i, j] · b[j, d]    w sums of Scores, rounded to T
///
/// Both have the summed index in ascending order, and a row's sums depend on that row of a alone.
#pragma once

#include "cuda/attention/attention_turn.cuh"
#include "cuda/common/decode.cuh"
#include "cuda/common/swizzle.cuh"

namespace lowrank::gpu {

constexpr uint32_t kLanes = 0xffffffffu;

/// Copies rows [r0, r0 + kRows) of heads to a tile, zeros from row `end` and from piece `pieces`
/// on. `g_first`: row 0. With kWalk rows are those of a walk. The tile's parts of kPartRows rows
/// are part_bytes apart.
template <typename Heads, int kThreads, int kRows, int kPartRows, bool kWalk>
LOWRANK_DEVICE void CopyRows(const AttentionHeads& heads, const unsigned char* g_first, int r0,
                             int end, int group, int pieces, unsigned char* s_tile,
                             int part_bytes) {
  constexpr int kPieces = Heads::kRowBytes / 16;
  constexpr int kRowStep = kThreads / kPieces;
  static_assert(kThreads % kPieces == 0 && kRows % kRowStep == 0 && kPartRows % kRowStep == 0);
  const int piece = static_cast<int>(threadIdx.x) % kPieces;
  const int first_row = static_cast<int>(threadIdx.x) / kPieces;
#pragma unroll
  for (int i = 0; i < kRows / kRowStep; ++i) {
    const int row = i * kRowStep % kPartRows + first_row;
    const int r = r0 + i * kRowStep + first_row;
    int64_t elems;
    if constexpr (kWalk) {
      const int t = static_cast<int>(static_cast<uint32_t>(r) / static_cast<uint32_t>(group));
      elems = t * heads.row_elems + (r - t * group) * heads.head_elems;
    } else {
      elems = r * heads.row_elems;
    }
    const bool inside = r < end && piece < pieces;
    const unsigned char* g_from = g_first;
    if (inside) g_from += elems * Heads::kBytes + piece * 16;
    CpAsync16(s_tile + i * kRowStep / kPartRows * part_bytes + Heads::Offset(row, piece), g_from,
              inside ? 16 : 0);
  }
}

/// The first row of a head of a sequence.
LOWRANK_DEVICE int64_t FirstElement(const AttentionHeads& heads, int64_t sequence, int64_t head) {
  return sequence * heads.sequence_rows * heads.row_elems + head * heads.head_elems;
}
template <typename Heads>
LOWRANK_DEVICE const unsigned char* FirstRow(const AttentionHeads& heads, int64_t sequence,
                                             int64_t head) {
  return static_cast<const unsigned char*>(heads.data) +
         FirstElement(heads, sequence, head) * Heads::kBytes;
}

template <int kMi, int kN>
LOWRANK_DEVICE void Clear(float (&sums)[kMi][kN][4]) {
#pragma unroll
  for (int mi = 0; mi < kMi; ++mi) {
#pragma unroll
    for (int n = 0; n < kN; ++n) {
#pragma unroll
      for (int q = 0; q < 4; ++q) sums[mi][n][q] = 0.0f;
    }
  }
}

/// T of 16 bits: mma.sync m16n8k16.
template <typename MmaElement, typename T, int kDim_>
struct MmaHeadsOf {
  using Type = T;
  static constexpr int kDim = kDim_;
  static constexpr int kBytes = 2;
  static constexpr int kRowBytes = kDim * kBytes;

  LOWRANK_DEVICE int Offset(int row, int piece) { return SwizzledOffset<kRowBytes>(row, piece); }
  /// Of pieces 0 and 1, to which other pairs of pieces are an xor. Computed where it is used: kept
  /// over the walk, all of them would not fit the registers.
  LOWRANK_DEVICE uint32_t LaneOffset(int row, int piece) {
    return Keep(static_cast<uint32_t>(Offset(row, piece)));
  }

  template <int kMi, int kNi>
  LOWRANK_DEVICE void Scores(float (&s)[kMi][kNi][4], const unsigned char* s_a,
                             const unsigned char* s_b) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const uint32_t a_bytes = LaneOffset(lane % 16, lane / 16);
    const uint32_t b_bytes = LaneOffset(lane % 8 + lane / 16 * 8, lane / 8 % 2);
    Clear(s);
#pragma unroll
    for (int step = 0; step < kDim / 16; ++step) {
      uint32_t a[kMi][4];
#pragma unroll
      for (int mi = 0; mi < kMi; ++mi) {
        LdMatrixX4(a[mi], s_a + (a_bytes ^ (step * 32u)) + mi * 16 * kRowBytes);
      }
#pragma unroll
      for (int ni = 0; ni < kNi; ni += 2) {
        uint32_t b[4];
        LdMatrixX4(b, s_b + (b_bytes ^ (step * 32u)) + ni * 8 * kRowBytes);
#pragma unroll
        for (int mi = 0; mi < kMi; ++mi) {
          MmaElement::Mma(s[mi][ni], a[mi], b[0], b[1]);
          MmaElement::Mma(s[mi][ni + 1], a[mi], b[2], b[3]);
        }
      }
    }
  }

  template <int kMi, int kNi>
  LOWRANK_DEVICE void Accumulate(float (&o)[kMi][kDim / 8][4], const float (&w)[kMi][kNi][4],
                                 const unsigned char* s_b) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const uint32_t b_bytes = LaneOffset(lane % 16, lane / 16);
#pragma unroll
    for (int ni = 0; ni < kNi; ni += 2) {
      uint32_t a[kMi][4];
#pragma unroll
      for (int mi = 0; mi < kMi; ++mi) {
        a[mi][0] = MmaElement::Pack(w[mi][ni][0], w[mi][ni][1]);
        a[mi][1] = MmaElement::Pack(w[mi][ni][2], w[mi][ni][3]);
        a[mi][2] = MmaElement::Pack(w[mi][ni + 1][0], w[mi][ni + 1][1]);
        a[mi][3] = MmaElement::Pack(w[mi][ni + 1][2], w[mi][ni + 1][3]);
      }
#pragma unroll
      for (int n = 0; n < kDim / 8; n += 2) {
        uint32_t b[4];
        LdMatrixX4Trans(b, s_b + (b_bytes ^ (n * 16u)) + ni * 8 * kRowBytes);
#pragma unroll
        for (int mi = 0; mi < kMi; ++mi) {
          MmaElement::Mma(o[mi][n], a[mi], b[0], b[1]);
          MmaElement::Mma(o[mi][n + 1], a[mi], b[2], b[3]);
        }
      }
    }
  }
};
template <int kDim>
using BF16Heads = MmaHeadsOf<ElementBF16T, ElementBF16, kDim>;
template <int kDim>
using F16Heads = MmaHeadsOf<ElementF16T, ElementF16, kDim>;

/// T = f32: fma, each lane its own sums.
template <int kDim_>
struct F32Heads {
  using Type = ElementF32;
  static constexpr int kDim = kDim_;
  static constexpr int kBytes = 4;
  static constexpr int kRowBytes = kDim * kBytes;

  LOWRANK_DEVICE int Offset(int row, int piece) { return SwizzledOffset<kRowBytes>(row, piece); }
  LOWRANK_DEVICE float4 Piece(const unsigned char* s_tile, uint32_t offset_bytes) {
    return *reinterpret_cast<const float4*>(s_tile + offset_bytes);
  }
  LOWRANK_DEVICE float Dot(const float4& a, const float4& b, float sum) {
    return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
  }

  template <int kMi, int kNi>
  LOWRANK_DEVICE void Scores(float (&s)[kMi][kNi][4], const unsigned char* s_a,
                             const unsigned char* s_b) {
    const int g = static_cast<int>(threadIdx.x) % 32 / 4;
    const int t = static_cast<int>(threadIdx.x) % 4;
    // Of piece 0, to which other pieces are an xor.
    const uint32_t a_bytes = static_cast<uint32_t>(Offset(g, 0));
    const uint32_t b_bytes[2] = {static_cast<uint32_t>(Offset(2 * t, 0)),
                                 static_cast<uint32_t>(Offset(2 * t + 1, 0))};
    Clear(s);
#pragma unroll 1
    for (uint32_t piece_bytes = 0; piece_bytes < kRowBytes; piece_bytes += 16) {
      float4 a[kMi][2];
#pragma unroll
      for (int mi = 0; mi < kMi; ++mi) {
        const unsigned char* s_rows = s_a + mi * 16 * kRowBytes;
        a[mi][0] = Piece(s_rows, a_bytes ^ piece_bytes);
        a[mi][1] = Piece(s_rows + 8 * kRowBytes, a_bytes ^ piece_bytes);
      }
#pragma unroll
      for (int ni = 0; ni < kNi; ++ni) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const float4 b = Piece(s_b + ni * 8 * kRowBytes, b_bytes[j] ^ piece_bytes);
#pragma unroll
          for (int mi = 0; mi < kMi; ++mi) {
            s[mi][ni][j] = Dot(a[mi][0], b, s[mi][ni][j]);
            s[mi][ni][j + 2] = Dot(a[mi][1], b, s[mi][ni][j + 2]);
          }
        }
      }
    }
  }

  template <int kMi, int kNi>
  LOWRANK_DEVICE void Accumulate(float (&o)[kMi][kDim / 8][4], const float (&w)[kMi][kNi][4],
                                 const unsigned char* s_b) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int t = lane % 4;
#pragma unroll
    for (int ni = 0; ni < kNi; ++ni) {
#pragma unroll 1
      for (int pair = 0; pair < 4; ++pair) {
        // This lane of the four that share a row has both of its columns.
        const int owner = lane - t + pair;
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const int row = 2 * pair + j;
          const uint32_t b_bytes = Keep(static_cast<uint32_t>(Offset(row, t / 2) + t % 2 * 8));
          float weight[kMi][2];
#pragma unroll
          for (int mi = 0; mi < kMi; ++mi) {
            weight[mi][0] = __shfl_sync(kLanes, w[mi][ni][j], owner);
            weight[mi][1] = __shfl_sync(kLanes, w[mi][ni][j + 2], owner);
          }
#pragma unroll
          for (int n = 0; n < kDim / 8; ++n) {
            const float2 b =
                *reinterpret_cast<const float2*>(s_b + (b_bytes ^ (n * 32u)) + ni * 8 * kRowBytes);
#pragma unroll
            for (int mi = 0; mi < kMi; ++mi) {
              o[mi][n][0] = fmaf(weight[mi][0], b.x, o[mi][n][0]);
              o[mi][n][1] = fmaf(weight[mi][0], b.y, o[mi][n][1]);
              o[mi][n][2] = fmaf(weight[mi][1], b.x, o[mi][n][2]);
              o[mi][n][3] = fmaf(weight[mi][1], b.y, o[mi][n][3]);
            }
          }
        }
      }
    }
  }
};

/// Sums of a warp on the way to memory: 16 rows of kDim in f32, swizzled so that the stores of
/// fragments and the loads of pieces have no conflicts.
template <int kDim>
struct StagedRows {
  unsigned char* s_rows;
  int row;

  LOWRANK_DEVICE int Offset(int row, int piece) {
    return row * kDim * 4 + ((piece ^ ((row & 3) << 1)) << 4);
  }
  __device__ __forceinline__ float Element(int i) const {
    return reinterpret_cast<const float*>(s_rows + Offset(row, i / 4))[i % 4];
  }
  template <int kElems>
  __device__ __forceinline__ void Piece(int col, float (&value)[kElems]) const {
#pragma unroll
    for (int i = 0; i < kElems; i += 4) {
      const float4 four = *reinterpret_cast<const float4*>(s_rows + Offset(row, (col + i) / 4));
      value[i] = four.x;
      value[i + 1] = four.y;
      value[i + 2] = four.z;
      value[i + 3] = four.w;
    }
  }
};

/// Stores 16 rows of a warp's sums, each times its lane's factors, through its own part of shared
/// memory: store(row, col, source) for each piece of kElems columns.
template <int kDim, int kElems, typename Store>
LOWRANK_DEVICE void StoreStaged(const float (&sums)[kDim / 8][4], float factor, float factor_8,
                                unsigned char* s_rows, int dim, const Store& store) {
  using Rows = StagedRows<kDim>;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int g = lane / 4;
  const int t = lane % 4;
  __syncwarp();  // what was here has been read
#pragma unroll
  for (int n = 0; n < kDim / 8; ++n) {
    const int offset_bytes = t % 2 * 8;
    *reinterpret_cast<float2*>(s_rows + Rows::Offset(g, 2 * n + t / 2) + offset_bytes) =
        make_float2(sums[n][0] * factor, sums[n][1] * factor);
    *reinterpret_cast<float2*>(s_rows + Rows::Offset(g + 8, 2 * n + t / 2) + offset_bytes) =
        make_float2(sums[n][2] * factor_8, sums[n][3] * factor_8);
  }
  __syncwarp();
  constexpr int kPieces = kDim / kElems;
#pragma unroll 1
  for (int at = lane; at < 16 * kPieces; at += 32) {
    const int col = at % kPieces * kElems;
    if (col < dim) store(at / kPieces, col, Rows{s_rows, at / kPieces});
  }
}

/// What becomes of a score on the way to 2^x.
struct ScoreMap {
  float factor;
  float cap;

  /// Off by 2 ulp: E / (E + 2) with E = 2^(2 |x| / ln 2) - 1 = 2^n · (1 + f · Q(f)) - 1, which near
  /// 0 is the polynomial alone.
  LOWRANK_DEVICE float Tanh(float x) {
    const float twice = fminf(fabsf(x) * 2.88539008f, 40.0f);
    const float magic = 12582912.0f;  // 1.5 · 2^23: the low bits of the sum are the integer
    const float shifted = twice + magic;
    const float f = twice - (shifted - magic);
    float q = 1.5353362e-4f;
    q = fmaf(q, f, 1.3398874e-3f);
    q = fmaf(q, f, 9.618437e-3f);
    q = fmaf(q, f, 5.5503324e-2f);
    q = fmaf(q, f, 0.24022648f);
    q = fmaf(q, f, 0.69314718f);
    const float power = __uint_as_float((__float_as_uint(shifted) + 127u) << 23);
    const float e = fmaf(power, f * q, power - 1.0f);
    const float size = x == x ? e / (e + 2.0f) : x;
    return __uint_as_float(__float_as_uint(size) | (__float_as_uint(x) & 0x80000000u));
  }

  /// Scores to exponents of 2, in place.
  template <int kMi, int kNi>
  __device__ __forceinline__ void Apply(float (&s)[kMi][kNi][4]) const {
    if (cap == 0.0f) {
#pragma unroll
      for (int mi = 0; mi < kMi; ++mi) {
#pragma unroll
        for (int ni = 0; ni < kNi; ++ni) {
#pragma unroll
          for (int q = 0; q < 4; ++q) s[mi][ni][q] *= factor;
        }
      }
      return;
    }
#pragma unroll
    for (int mi = 0; mi < kMi; ++mi) {
#pragma unroll
      for (int ni = 0; ni < kNi; ++ni) {
#pragma unroll
        for (int q = 0; q < 4; ++q) s[mi][ni][q] = Tanh(s[mi][ni][q] * factor) * cap;
      }
    }
  }
};

}  // namespace lowrank::gpu
