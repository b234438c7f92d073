/// Brings matrices into the form that the copy engine and the tensor cores read: a quantised
/// weight, or its transpose, as rows of T; rows that cannot be read by 16 bytes, copied to aligned
/// ones; an f32 factor as bf16 pieces; the elements that a gate keeps as bits.
#pragma once

#include "cuda/gpu.cuh"
#include "cuda/lora/lora_gate.cuh"
#include "cuda/lora/lora_pairs.cuh"
#include "cuda/ptx_sm90.cuh"
#include "native/host_device/params/gemm_wgmma.h"

namespace lowrank::gpu {

/// T of a panel: two values rounded to it, `low` in the low half.
struct PanelBF16 {
  LOWRANK_DEVICE uint32_t Pack(float low, float high) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return static_cast<uint32_t>(__bfloat16_as_ushort(pair.x)) |
           static_cast<uint32_t>(__bfloat16_as_ushort(pair.y)) << 16;
  }
  LOWRANK_DEVICE float Unpack(uint16_t bits) {
    return __uint_as_float(static_cast<uint32_t>(bits) << 16);
  }
};
struct PanelF16 {
  LOWRANK_DEVICE uint32_t Pack(float low, float high) {
    const __half2 pair = __floats2half2_rn(low, high);
    return static_cast<uint32_t>(__half_as_ushort(pair.x)) |
           static_cast<uint32_t>(__half_as_ushort(pair.y)) << 16;
  }
  LOWRANK_DEVICE float Unpack(uint16_t bits) { return __half2float(__ushort_as_half(bits)); }
};

/// Element i of a dense array of any dtype.
LOWRANK_DEVICE float LoadAs(const void* source, PanelSource kind, int64_t i) {
  if (kind == PanelSource::kF32) return static_cast<const float*>(source)[i];
  const uint16_t bits = static_cast<const uint16_t*>(source)[i];
  if (kind == PanelSource::kBF16) return __uint_as_float(static_cast<uint32_t>(bits) << 16);
  return __half2float(__ushort_as_half(bits));
}

/// absmax of a block; with double quantisation product and sum are rounded separately.
LOWRANK_DEVICE float PanelScale(const PanelFill& fill, int64_t block) {
  if (fill.absmax != nullptr) return __ldg(fill.absmax + block);
  const float product = __ldg(fill.absmax_codebook + __ldg(fill.absmax_8bit + block)) *
                        __ldg(fill.nested_absmax + (block >> fill.nested_blocksize_log2));
  return product + __ldg(fill.absmax_offset);
}

/// Loads the codebook into s_codebook [256]; a barrier must follow.
LOWRANK_DEVICE void LoadCodebook(const PanelFill& fill, float* s_codebook) {
  const uint32_t levels = fill.kind == PanelSource::kCodes4   ? 16
                          : fill.kind == PanelSource::kCodes8 ? 256
                                                              : 0;
  for (uint32_t i = threadIdx.x; i < levels; i += blockDim.x) s_codebook[i] = fill.codebook[i];
}

/// Eight neighbouring elements of the source, as loaded at once.
struct OctetOfCodes4 {
  static constexpr bool kScaled = true;
  uint32_t word = 0;
  __device__ __forceinline__ void Load(const PanelFill& fill, int64_t elem) {
    const uint8_t* codes = static_cast<const uint8_t*>(fill.source);
    word = __ldg(reinterpret_cast<const uint32_t*>(codes + elem / 2));
  }
  /// The high nibble is the first.
  __device__ __forceinline__ float Value(const float* s_codebook, int i) const {
    return s_codebook[word >> (i ^ 1) * 4 & 15];
  }
};
struct OctetOfCodes8 {
  static constexpr bool kScaled = true;
  uint2 words = {0, 0};
  __device__ __forceinline__ void Load(const PanelFill& fill, int64_t elem) {
    const uint8_t* codes = static_cast<const uint8_t*>(fill.source);
    words = __ldg(reinterpret_cast<const uint2*>(codes + elem));
  }
  __device__ __forceinline__ float Value(const float* s_codebook, int i) const {
    return s_codebook[(i < 4 ? words.x : words.y) >> i % 4 * 8 & 255];
  }
};
/// Elements of T itself.
template <typename T>
struct OctetOf {
  static constexpr bool kScaled = false;
  uint4 words = {0, 0, 0, 0};
  __device__ __forceinline__ void Load(const PanelFill& fill, int64_t elem) {
    words = __ldg(reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(fill.source) + elem));
  }
  __device__ __forceinline__ float Value(const float*, int i) const {
    const uint32_t pair = i < 2 ? words.x : i < 4 ? words.y : i < 6 ? words.z : words.w;
    return T::Unpack(static_cast<uint16_t>(pair >> i % 2 * 16));
  }
};

/// An octet a lane and step, four steps of loads in flight. The codebook has one word a bank, so
/// any 32 lookups of a 4-bit table are one wavefront; of an 8-bit table, whose 256 entries share
/// the banks, 2.9 on average for random codes (32 copies would cost 32 KB, a stage of products).
template <typename T, typename Octet>
LOWRANK_DEVICE void FillPanelRows(const PanelFill& fill, const float* s_codebook, uint32_t unit,
                                  uint32_t units) {
  constexpr int kSteps = 4;
  constexpr int64_t kStepElems = 8 * 32;
  const int64_t lane_elem = static_cast<int64_t>(threadIdx.x % 32) * 8;
  const int64_t chunks = (fill.cols + kSteps * kStepElems - 1) / (kSteps * kStepElems);
  for (int64_t item = unit; item < fill.rows * chunks; item += units) {
    const int64_t row = item / chunks;
    const int64_t first_col = (item - row * chunks) * (kSteps * kStepElems) + lane_elem;
    Octet octets[kSteps];
    float scale[kSteps];
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const int64_t col = first_col + step * kStepElems;
      if (col < fill.cols) {
        const int64_t elem = fill.first_elem + row * fill.row_step + col;
        octets[step].Load(fill, elem);
        scale[step] = PanelScale(fill, elem >> fill.blocksize_log2);
      }
    }
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const int64_t col = first_col + step * kStepElems;
      if (col < fill.cols) {
        uint32_t out[4];
#pragma unroll
        for (int pair = 0; pair < 4; ++pair) {
          out[pair] = T::Pack(octets[step].Value(s_codebook, 2 * pair) * scale[step],
                              octets[step].Value(s_codebook, 2 * pair + 1) * scale[step]);
        }
        Store16(static_cast<uint16_t*>(fill.target) + row * fill.stride_elems + col,
                uint4{out[0], out[1], out[2], out[3]});
      }
    }
  }
}

/// A panel of wᵀ: a lane turns 8 x 8 elements in its registers, eight octets of as many rows of the
/// source into eight stores of 16 bytes to as many rows of the panel. Four lanes side by side along
/// the panel's row fill whole sectors of it, eight along the source's row read whole ones (4-bit
/// codes: 32 bytes), and items follow each other along the source's row, so that the warps that run
/// at one time read its lines whole.
template <typename T, typename Octet>
LOWRANK_DEVICE void FillPanelTurned(const PanelFill& fill, const float* s_codebook, uint32_t unit,
                                    uint32_t units) {
  constexpr int kOctets = 8;
  constexpr int64_t kItemRows = 8 * 8;
  constexpr int64_t kItemCols = 4 * kOctets;
  const int64_t lane_row = threadIdx.x % 32 / 4 * 8;
  const int64_t lane_col = threadIdx.x % 4 * kOctets;
  const int64_t row_items = (fill.rows + kItemRows - 1) / kItemRows;
  const int64_t col_items = (fill.cols + kItemCols - 1) / kItemCols;
  for (int64_t item = unit; item < row_items * col_items; item += units) {
    const int64_t row0 = item % row_items * kItemRows + lane_row;
    const int64_t col0 = item / row_items * kItemCols + lane_col;
    if (row0 >= fill.rows || col0 >= fill.cols) continue;
    Octet octets[kOctets];
    float scale[kOctets];
#pragma unroll
    for (int i = 0; i < kOctets; ++i) {
      scale[i] = 0;  // zeros to the end of the stride
      if (col0 + i < fill.cols) {
        const int64_t elem = fill.first_elem + row0 + (col0 + i) * fill.col_step;
        octets[i].Load(fill, elem);
        scale[i] = Octet::kScaled ? PanelScale(fill, elem >> fill.blocksize_log2) : 1.0f;
      }
    }
#pragma unroll
    for (int row = 0; row < 8; ++row) {
      uint32_t out[4];
#pragma unroll
      for (int pair = 0; pair < 4; ++pair) {
        float low = octets[2 * pair].Value(s_codebook, row);
        float high = octets[2 * pair + 1].Value(s_codebook, row);
        if (Octet::kScaled) {
          low *= scale[2 * pair];
          high *= scale[2 * pair + 1];
        }
        out[pair] = T::Pack(low, high);
      }
      Store16(static_cast<uint16_t*>(fill.target) + (row0 + row) * fill.stride_elems + col0,
              uint4{out[0], out[1], out[2], out[3]});
    }
  }
}

/// Any alignment, any blocksize: one element per lane and step.
template <typename T>
LOWRANK_DEVICE void FillPanelElements(const PanelFill& fill, const float* s_codebook, uint32_t unit,
                                      uint32_t units) {
  const uint8_t* codes = static_cast<const uint8_t*>(fill.source);
  for (int64_t row = unit; row < fill.rows; row += units) {
    for (int64_t col = threadIdx.x % 32; col < fill.cols; col += 32) {
      const int64_t elem = fill.first_elem + row * fill.row_step + col * fill.col_step;
      float value;
      if (fill.kind == PanelSource::kCodes4 || fill.kind == PanelSource::kCodes8) {
        const uint32_t code = fill.kind == PanelSource::kCodes8
                                  ? codes[elem]
                                  : codes[elem >> 1] >> (elem % 2 == 0 ? 4 : 0) & 15u;
        value = s_codebook[code] * PanelScale(fill, elem >> fill.blocksize_log2);
      } else {
        value = LoadAs(fill.source, fill.kind, elem);
      }
      static_cast<uint16_t*>(fill.target)[row * fill.stride_elems + col] =
          static_cast<uint16_t>(T::Pack(value, 0.0f));
    }
  }
}

/// The share of warp `unit` of `units` in a panel; s_codebook as LoadCodebook left it.
template <typename T>
LOWRANK_DEVICE void FillPanel(const PanelFill& fill, const float* s_codebook, uint32_t unit,
                              uint32_t units) {
  if (fill.kind == PanelSource::kNone) return;
  if (fill.path == PanelPath::kElements) {
    FillPanelElements<T>(fill, s_codebook, unit, units);
  } else if (fill.path == PanelPath::kRows) {
    if (fill.kind == PanelSource::kCodes4) {
      FillPanelRows<T, OctetOfCodes4>(fill, s_codebook, unit, units);
    } else {
      FillPanelRows<T, OctetOfCodes8>(fill, s_codebook, unit, units);
    }
  } else if (fill.kind == PanelSource::kCodes4) {
    FillPanelTurned<T, OctetOfCodes4>(fill, s_codebook, unit, units);
  } else if (fill.kind == PanelSource::kCodes8) {
    FillPanelTurned<T, OctetOfCodes8>(fill, s_codebook, unit, units);
  } else {
    FillPanelTurned<T, OctetOf<T>>(fill, s_codebook, unit, units);
  }
}

/// The share of warp `unit` of `units` in a copy of a dense matrix, unchanged.
template <typename T>
LOWRANK_DEVICE void FillCopy(const PanelFill& fill, uint32_t unit, uint32_t units) {
  if (fill.kind != PanelSource::kNone) FillPanelElements<T>(fill, nullptr, unit, units);
}

/// The share of thread `index` of `count`.
LOWRANK_DEVICE void FillSplit(const SplitFill& fill, int64_t index, int64_t count) {
  if (fill.kind == PanelSource::kNone) return;
  for (int64_t i = index; i < fill.rows * fill.r_padded; i += count) {
    const int64_t row = i / fill.r_padded;
    const uint32_t ri = static_cast<uint32_t>(i - row * fill.r_padded);
    float value = 0;
    if (ri < fill.r) {
      value =
          fill.scale * LoadAs(fill.source, fill.kind, row * fill.row_step + ri * fill.rank_step);
    }
    uint16_t* target = static_cast<uint16_t*>(fill.target) + row * fill.pairs * fill.r_padded + ri;
    for (uint32_t pair = 0; pair < fill.pairs; ++pair) {
      target[pair * fill.r_padded] = PairPart(value, fill.parts, static_cast<int>(pair));
    }
  }
}

LOWRANK_DEVICE void FillAddend(const AddendFill& fill, int64_t index, int64_t count) {
  for (int64_t n = index; n < fill.N; n += count) {
    float sum = 0;
    if (fill.bias_kind != PanelSource::kNone) sum = LoadAs(fill.bias, fill.bias_kind, n);
    if (fill.lora_bias_kind != PanelSource::kNone) {
      sum += fill.scaling * LoadAs(fill.lora_bias, fill.lora_bias_kind, n);
    }
    fill.target[n] = sum;
  }
}

/// The share of warp `unit` of `units` in rows [first_row, row_end): an item is a row of up to 32
/// words, with one word per lane.
LOWRANK_DEVICE void FillKept(const KeptFill& fill, int64_t first_row, int64_t row_end,
                             uint32_t unit, uint32_t units) {
  if (fill.target == nullptr) return;
  const uint32_t runs = (fill.words + 31) / 32;
  for (int64_t item = unit; item < (row_end - first_row) * runs; item += units) {
    const int64_t row = item / runs;
    const uint32_t of_row = static_cast<uint32_t>(item - row * runs) * 32 + threadIdx.x % 32;
    if (of_row >= fill.words) continue;
    const uint32_t word = fill.first_word + of_row;
    const int64_t m = first_row + row;
    uint32_t kept = 0;
    int64_t col = static_cast<int64_t>(word) * 32;
#pragma unroll 1
    for (uint32_t bit = 0; bit < 32 && col < fill.cols; bit += 8, col += 8) {
      const int inside = fill.cols - col < 8 ? static_cast<int>(fill.cols - col) : 8;
      kept |= (KeptBits<8>(fill.gate, m * fill.cols + col, inside) & 255u) << bit;
    }
    fill.target[m * fill.row_words + word] = kept;
  }
}

}  // namespace lowrank::gpu
