/// Shared by the products of few tokens, whatever multiplies: a block's loop over the weight, its
/// scales, and the epilogue. matmul_small_m_sm80.cu has the layout and the budget.
#pragma once

#include "cuda/small_m/small_m_decode.cuh"

namespace lowrank::gpu {

/// As QuantView::Scale: product and sum rounded separately.
LOWRANK_DEVICE float SmallMScale(const GemmMmaWeight& w, uint32_t code, float nested) {
  const float product = w.absmax_codebook[code] * nested;
  return product + *w.absmax_offset;
}

/// The biases of kRows outputs from n on; zero if there are none.
template <int kRows>
struct OutputBias {
  float bias[kRows] = {};
  float lora_bias[kRows] = {};

  __device__ __forceinline__ OutputBias(const SmallMParams& p, int64_t n) {
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      const int64_t own = kRows == 1 ? n : min(n + row, p.N - 1);
      if (p.bias != nullptr) bias[row] = LoadAny(p.bias, p.bias_dtype, own);
      if (p.lora_bias != nullptr) lora_bias[row] = LoadAny(p.lora_bias, p.lora_bias_dtype, own);
    }
  }
};

/// Ranks [j, j + kRanks) of h · lora_bᵀ, for kRows outputs from n on and the tokens first, first +
/// step, ...; kVector: r is a multiple of 8, and rows are read by 16-byte accesses. There is one
/// branch per four tokens, which also bounds the registers for loads in flight; other tokens past M
/// read the last one.
template <int kRanks, bool kVector, int kCount, int kRows>
LOWRANK_DEVICE void AddRanks(const SmallMParams& p, int64_t n, int64_t first, int64_t step,
                             int64_t j, float (&adapter)[kCount][kRows]) {
  const auto load = [&](float(&value)[kRanks], const void* g_matrix, uint8_t dtype, int64_t row) {
    if constexpr (kVector) {
      LoadEight(value, g_matrix, dtype, row * p.r + j, 8, true);
    } else {
      LoadEach(value, g_matrix, dtype, row * p.r + j, p.r - j);
    }
  };
  constexpr int kTogether = kCount > 2 ? 4 : 1;
  float factor[kRows][kRanks];
#pragma unroll
  for (int row = 0; row < kRows; ++row) {
    load(factor[row], p.lora_b, p.lora_b_dtype, kRows == 1 ? n : min(n + row, p.N - 1));
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if (i > 0 && i % kTogether == 0 && first + i * step >= p.M) break;
    float value[kRanks];
    load(value, p.h, kElementF32, i == 0 ? first : min(first + i * step, p.M - 1));
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
#pragma unroll
      for (int q = 0; q < kRanks; ++q) {
        adapter[i][row] = fmaf(value[q], factor[row][q], adapter[i][row]);
      }
    }
  }
}

/// y for kRows outputs from n on and the tokens first, first + step, ...: bias and LoRA term added
/// to the sums, then rounded. lora_b's rows are read once for all of the tokens; lanes that share a
/// token read its h as one broadcast.
template <typename Element, int kCount, int kRows>
LOWRANK_DEVICE void FinishOutputs(const SmallMParams& p, const OutputBias<kRows>& bias, int64_t n,
                                  int64_t first, int64_t step, const float (&sum)[kCount][kRows]) {
  if (first >= p.M) return;
  float adapter[kCount][kRows] = {};
  if (p.h != nullptr) {
    const bool vector = p.r % 8 == 0 && (reinterpret_cast<uintptr_t>(p.lora_b) & 15u) == 0 &&
                        (reinterpret_cast<uintptr_t>(p.h) & 15u) == 0;
    if (vector) {
      for (int64_t j = 0; j < p.r; j += 8) AddRanks<8, true>(p, n, first, step, j, adapter);
    } else {
      for (int64_t j = 0; j < p.r; j += 4) AddRanks<4, false>(p, n, first, step, j, adapter);
    }
  }
  // A row of y is then a multiple of 8 bytes, and n is the first of four outputs.
  const bool whole = kRows == 4 && p.N % 4 == 0 && (reinterpret_cast<uintptr_t>(p.y) & 7u) == 0;
  const bool with_bias = p.bias != nullptr;
  const bool with_lora = p.h != nullptr || p.lora_bias != nullptr;
  uint16_t* g_first = static_cast<uint16_t*>(p.y) + first * p.N + n;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if (i > 0 && first + i * step >= p.M) break;
    float value[kRows];
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      const float base = with_bias ? sum[i][row] + bias.bias[row] : sum[i][row];
      const float lora = p.scaling * (adapter[i][row] + bias.lora_bias[row]);
      value[row] = with_lora ? base + lora : base;
    }
    uint16_t* g_y = g_first + i * (step * p.N);
    if constexpr (kRows == 4) {
      if (whole) {
        const uint64_t low = Element::Pack(value[0], value[1]);
        *reinterpret_cast<uint64_t*>(g_y) =
            low | static_cast<uint64_t>(Element::Pack(value[2], value[3])) << 32;
        continue;
      }
    }
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      if (kRows > 1 && n + row >= p.N) break;
      g_y[row] = static_cast<uint16_t>(Element::Pack(value[row], 0.0f));
    }
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
  /// The lane's first k of a step, relative to the slice.
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
  /// the rest for the next three). All of a lane's rows are asked for at once, since a request
  /// takes a microsecond. Its stores take two wavefronts; a stride that spares them would cost the
  /// main loop's loads as much, which are more.
  __device__ __forceinline__ void FillScales() {
    const GemmMmaWeight& w = p_.w;
    constexpr int kRowsApart = kSmallMWarps * 4;
    constexpr int kOwn = Tile::kRows / kRowsApart;
    const int row = static_cast<int>(threadIdx.x / 32) * 4 + lane_ / 8;
    int64_t begin[kOwn];
    int last[kOwn];  // index of the row's last block
    int most = 0;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int64_t n = Least(first_n_ + row + i * kRowsApart, p_.N - 1);
      const int64_t element = n * p_.K + first_k_;
      begin[i] = element >> w.blocksize_log2;
      last[i] = static_cast<int>(((element + slice_ - 1) >> w.blocksize_log2) - begin[i]);
      most = max(most, last[i]);
    }
#pragma unroll 1
    for (int b = lane_ % 8; b <= most; b += 8) {
      float scale[kOwn];
      if (w.absmax_8bit == nullptr) {
#pragma unroll
        for (int i = 0; i < kOwn; ++i) scale[i] = w.absmax[begin[i] + min(b, last[i])];
      } else {
        uint32_t code[kOwn];
#pragma unroll
        for (int i = 0; i < kOwn; ++i) {
          const int64_t block = begin[i] + min(b, last[i]);
          code[i] = w.absmax_8bit[block];
          scale[i] = w.nested_absmax[block >> w.nested_log2];
        }
#pragma unroll
        for (int i = 0; i < kOwn; ++i) scale[i] = SmallMScale(w, code[i], scale[i]);
      }
      float* s_scale = Scales() + b * Tile::kScaleStride + row;
#pragma unroll
      for (int i = 0; i < kOwn; ++i) s_scale[i * kRowsApart] = scale[i];
    }
  }

  /// What the lane needs to decode fragment i's codes of a step. In the step that the slice ends in
  /// (kTail), lanes past the end get a scale of 0 and codes of a finite value: x is 0 there, and
  /// 0 · x must be 0.
  template <bool kTail>
  __device__ __forceinline__ typename Decoder::Prepared Prepare(int i, int step, Codes* codes) {
    const int k = LaneK(step);
    const bool inside = !kTail || k < slice_;
    const uint32_t padding = kTail ? decoder_.Padding() : 0;
    float scale[2] = {};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if constexpr (kQuantised) {
        const int block = (in_block_[i][half] + k) >> p_.w.blocksize_log2;
        const int slot = Shared::kScaleSlots > 0 ? block & (Shared::kScaleSlots - 1) : block;
        const float* s_scale = Scales() + slot * Tile::kScaleStride + LocalRow(i, half);
        if (inside) {
          if constexpr (Shared::kScaleSlots > 0) SlotRead(s_scale, static_cast<uint32_t>(block));
          scale[half] = *s_scale;
        }
      }
      if (!inside) codes->raw[i][half] = make_uint4(padding, padding, padding, padding);
    }
    return decoder_.Prepare(i, scale);
  }

  /// Each warp's sums to its plane, [token][row], over the tables and x, once nobody reads those
  /// any more, from fragment `first` on. sum(i, j, e) is register e of a fragment of 16 rows and 8
  /// tokens, column(i, half) where its row g or g + 8 lies.
  template <typename Column, typename Sum>
  __device__ __forceinline__ void StorePlanes(int first, Column column, Sum sum) {
    float* s_plane = s_.planes + warp_k_ * (Tile::kTokens * Tile::kPlaneStride);
#pragma unroll
    for (int i = 0; i < Tile::kTilesN; ++i) {
      if (i < first) continue;
#pragma unroll
      for (int j = 0; j < Tile::kTilesM; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int token = j * 8 + lane_ % 4 * 2 + e % 2;
          s_plane[token * Tile::kPlaneStride + column(i, e / 2)] = sum(i, j, e);
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
