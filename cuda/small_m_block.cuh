/// What the products of few tokens share, whatever multiplies: the way of a block through the
/// weight, its scales, and the epilogue. matmul_small_m_sm80.cu has the layout and the budget.
#pragma once

#include "cuda/small_m_decode.cuh"

namespace lowrank::gpu {

/// As QuantView::Scale: product and sum rounded separately.
LOWRANK_DEVICE float SmallMScale(const GemmMmaWeight& w, uint32_t code, float nested) {
  const float product = w.absmax_codebook[code] * nested;
  return product + *w.absmax_offset;
}

/// y for one output n and the tokens first, first + step, ...: bias and LoRA term added to the
/// sums, then rounded. lora_b's row is read once for all of them; lanes of a warp share the token,
/// so that its h is one broadcast.
template <typename Element, int kCount>
LOWRANK_DEVICE void FinishOutputs(const SmallMParams& p, int64_t n, int64_t first, int64_t step,
                                  const float (&sum)[kCount]) {
  float adapter[kCount] = {};
  if (p.h != nullptr) {
    const bool vector = p.r % 8 == 0 && (reinterpret_cast<uintptr_t>(p.lora_b) & 15u) == 0 &&
                        (reinterpret_cast<uintptr_t>(p.h) & 15u) == 0;
    for (int64_t j = 0; j < p.r; j += 8) {
      float factor[8];
      LoadEight(factor, p.lora_b, p.lora_b_dtype, n * p.r + j, p.r - j, vector);
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const int64_t m = first + i * step;
        if (m >= p.M) break;
        float value[8];
        LoadEight(value, p.h, kElementF32, m * p.r + j, p.r - j, vector);
#pragma unroll
        for (int q = 0; q < 8; ++q) adapter[i] = fmaf(value[q], factor[q], adapter[i]);
      }
    }
  }
  const float bias = p.bias != nullptr ? LoadAny(p.bias, p.bias_dtype, n) : 0.0f;
  const float lora_bias =
      p.lora_bias != nullptr ? LoadAny(p.lora_bias, p.lora_bias_dtype, n) : 0.0f;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const int64_t m = first + i * step;
    if (m >= p.M) break;
    float value = sum[i];
    if (p.bias != nullptr) value += bias;
    if (p.h != nullptr || p.lora_bias != nullptr) value += p.scaling * (adapter[i] + lora_bias);
    static_cast<uint16_t*>(p.y)[m * p.N + n] = static_cast<uint16_t>(Element::Pack(value, 0.0f));
  }
}

/// A block of threads: kRows outputs from row block `row_block` on, over a slice of K.
template <SmallMFormat kFormat, typename Element, typename Tile, typename Shared>
class SmallMBlock {
 public:
  __device__ __forceinline__ SmallMBlock(const SmallMParams& params, uint32_t row_block,
                                         uint32_t split)
      : p_(params),
        s_(DynamicShared<Shared>()),
        decoder_(s_.main.table, params.w.codebook),
        lane_(static_cast<int>(threadIdx.x % 32)),
        warp_n_(static_cast<int>(threadIdx.x / 32) % Tile::kWarpsN),
        warp_k_(static_cast<int>(threadIdx.x / 32) / Tile::kWarpsN),
        first_n_(static_cast<int64_t>(row_block) * Tile::kRows),
        first_k_(static_cast<int64_t>(split) * params.slice_k),
        slice_(static_cast<int>(Least(params.slice_k, params.K - first_k_))) {
    FindRows();
  }

 protected:
  static constexpr int kThreads = static_cast<int>(kSmallMThreads);
  static constexpr int kLaneElems = LaneElems(kFormat);
  static constexpr int kPieces = kLaneElems * 4 * 2 / 16;  // 16-byte pieces of x a warp's chunk
  static constexpr int kStepK = kSmallMStepK<kFormat, Tile>;
  static constexpr bool kQuantised = kFormat != SmallMFormat::kDense;
  using Decoder = LaneDecoder<kFormat, Element, Tile::kDecode>;

  struct Codes {
    uint4 raw[Tile::kTilesN][2];  // rows g and g + 8 of each fragment
  };

  LOWRANK_DEVICE int64_t Least(int64_t a, int64_t b) { return a < b ? a : b; }

  __device__ __forceinline__ int LocalRow(int tile, int half) const {
    return (warp_n_ * Tile::kTilesN + tile) * 16 + half * 8 + lane_ / 4;
  }
  /// The lane's first k of a step, in the slice.
  __device__ __forceinline__ int LaneK(int step) const {
    return step * kStepK + (warp_k_ * 4 + lane_ % 4) * kLaneElems;
  }

  /// The lane's codes of a step, in the step that the slice ends in past it those of its last
  /// piece, which Prepare() hides; nothing of a step after that.
  __device__ __forceinline__ void LoadCodes(int step, Codes* codes) const {
    const auto piece = static_cast<uint32_t>(min(LaneK(step), slice_ - kLaneElems)) / kLaneElems;
#pragma unroll
    for (int i = 0; i < Tile::kTilesN; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        codes->raw[i][half] = LoadStream16If(step * kStepK < slice_, g_rows_[i][half] + piece);
      }
    }
  }

  /// The scales of the block's rows, decoded, by block index from the first one of each row. A
  /// request is 4 rows of 8 neighbours: whole sectors of absmax (of absmax_8bit a quarter; L1 has
  /// the rest for the next three). Its stores take two wavefronts; a stride that spares them would
  /// cost the main loop's loads as much, which are more.
  __device__ __forceinline__ void FillScales() {
    const GemmMmaWeight& w = p_.w;
    const int warp = static_cast<int>(threadIdx.x / 32);
    for (int row = warp * 4 + lane_ / 8; row < Tile::kRows; row += kSmallMWarps * 4) {
      const int64_t element = Least(first_n_ + row, p_.N - 1) * p_.K + first_k_;
      const int64_t begin = element >> w.blocksize_log2;
      const int count = static_cast<int>(((element + slice_ - 1) >> w.blocksize_log2) - begin) + 1;
      float* s_scale = Scales() + row;
      if (w.absmax_8bit == nullptr) {
#pragma unroll 4
        for (int b = lane_ % 8; b < count; b += 8) {
          s_scale[b * Tile::kScaleStride] = w.absmax[begin + b];
        }
      } else {
        const int in_nested = static_cast<int>(begin & ((int64_t{1} << w.nested_log2) - 1));
        const float* g_nested = w.nested_absmax + (begin >> w.nested_log2);
#pragma unroll 4
        for (int b = lane_ % 8; b < count; b += 8) {
          const float nested = g_nested[(in_nested + b) >> w.nested_log2];
          const uint32_t code = w.absmax_8bit[begin + b];
          s_scale[b * Tile::kScaleStride] = SmallMScale(w, code, nested);
        }
      }
    }
  }

  /// What the lane needs to decode its rows' codes of a step. In the step that the slice ends in
  /// (kTail), lanes past the end get a scale of 0 and codes of a finite value: x is 0 there, and
  /// 0 · x must be 0.
  template <bool kTail>
  __device__ __forceinline__ void Prepare(int step, Codes* codes,
                                          typename Decoder::Prepared (&prepared)[Tile::kTilesN]) {
    const int k = LaneK(step);
    const bool inside = !kTail || k < slice_;
    const uint32_t padding = kTail ? decoder_.Padding() : 0;
#pragma unroll
    for (int i = 0; i < Tile::kTilesN; ++i) {
      float scale[2] = {};
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if constexpr (kQuantised) {
          const int block = (in_block_[i][half] + k) >> p_.w.blocksize_log2;
          if (inside) scale[half] = Scales()[block * Tile::kScaleStride + LocalRow(i, half)];
        }
        if (!inside) codes->raw[i][half] = make_uint4(padding, padding, padding, padding);
      }
      prepared[i] = decoder_.Prepare(i, scale);
    }
  }

  /// Each warp's sums to its plane, [token][row], over the tables and x, which nobody reads any
  /// more after the first barrier. sum(i, j, e) is register e of a fragment of 16 rows and 8
  /// tokens.
  template <typename Sum>
  __device__ __forceinline__ void StorePlanes(Sum sum) {
    __syncthreads();
    float* s_plane = s_.planes + warp_k_ * (Tile::kTokens * Tile::kPlaneStride);
#pragma unroll
    for (int i = 0; i < Tile::kTilesN; ++i) {
#pragma unroll
      for (int j = 0; j < Tile::kTilesM; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int token = j * 8 + lane_ % 4 * 2 + e % 2;
          s_plane[token * Tile::kPlaneStride + LocalRow(i, e / 2)] = sum(i, j, e);
        }
      }
    }
  }

  const SmallMParams& p_;
  Shared& s_;
  Decoder decoder_;
  const int lane_;
  const int warp_n_;
  const int warp_k_;
  const int64_t first_n_;
  const int64_t first_k_;
  const int slice_;  // k of this block

 private:
  /// Rows past N read the last one; what they give is not stored.
  __device__ __forceinline__ void FindRows() {
#pragma unroll
    for (int i = 0; i < Tile::kTilesN; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int64_t n = Least(first_n_ + LocalRow(i, half), p_.N - 1);
        const int64_t element = n * p_.K + first_k_;
        g_rows_[i][half] = Keep(static_cast<const uint4*>(p_.w.data) + element / kLaneElems);
        const int64_t in_block = element & ((int64_t{1} << p_.w.blocksize_log2) - 1);
        in_block_[i][half] = static_cast<int>(Keep(static_cast<uint32_t>(in_block)));
      }
    }
  }

  __device__ __forceinline__ float* Scales() { return reinterpret_cast<float*>(&s_ + 1); }

  const uint4* g_rows_[Tile::kTilesN][2];  // the slices of the lane's rows
  int in_block_[Tile::kTilesN][2];         // of their first elements in a quantisation block
};

}  // namespace lowrank::gpu
