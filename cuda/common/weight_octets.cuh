/// Elements of a weight of any kind, decoded to f32 where they are needed: one by one, or eight at
/// a time where rows and blocks are multiples of eight.
#pragma once

#include "cuda/common/decode.cuh"

namespace lowrank::gpu {

/// Scale of a block, or what it is decoded from: loaded ahead of its use.
struct RawScale {
  float absmax;  // or the nested absmax
  uint32_t code;
};

LOWRANK_DEVICE RawScale LoadScale(const GemmMmaWeight& w, int64_t block) {
  if (w.absmax != nullptr) return RawScale{w.absmax[block], 0};
  return RawScale{w.nested_absmax[block / w.nested_blocksize], w.absmax_8bit[block]};
}

/// The product and the sum are rounded separately, as QuantView::Scale says.
LOWRANK_DEVICE float DecodeScale(const GemmMmaWeight& w, const RawScale& raw) {
  if (w.absmax != nullptr) return raw.absmax;
  return w.absmax_codebook[raw.code] * raw.absmax + *w.absmax_offset;
}

/// Eight consecutive elements as they lie in memory.
struct RawOctet {
  uint4 low;
  uint4 high;
  RawScale scale;
};

/// One element, whatever the alignment.
LOWRANK_DEVICE float LoadWeight(const GemmMmaWeight& w, const float* s_codebook, int64_t index) {
  if (w.bits == 0) return LoadAny(w.data, w.dense_dtype, index);
  const uint8_t* g_codes = static_cast<const uint8_t*>(w.data);
  uint32_t code;
  if (w.bits == 8) {
    code = g_codes[index];
  } else {
    const uint32_t pair = g_codes[index >> 1];
    code = (index & 1) == 0 ? pair >> 4 : pair & 15u;
  }
  return s_codebook[code] * DecodeScale(w, LoadScale(w, index >> w.blocksize_log2));
}

LOWRANK_DEVICE RawOctet LoadOctet(const GemmMmaWeight& w, int64_t index) {
  RawOctet raw;
  raw.low = make_uint4(0, 0, 0, 0);
  raw.high = raw.low;
  raw.scale = RawScale{0.0f, 0};
  if (w.bits == 0) {
    if (w.dense_dtype == kElementF32) {
      const uint4* g_from =
          reinterpret_cast<const uint4*>(static_cast<const float*>(w.data) + index);
      raw.low = g_from[0];
      raw.high = g_from[1];
    } else {
      raw.low = *reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(w.data) + index);
    }
    return raw;
  }
  raw.scale = LoadScale(w, index >> w.blocksize_log2);
  const uint8_t* g_codes = static_cast<const uint8_t*>(w.data);
  if (w.bits == 4) {
    raw.low.x = *reinterpret_cast<const uint32_t*>(g_codes + (index >> 1));
  } else {
    const uint2 codes = *reinterpret_cast<const uint2*>(g_codes + index);
    raw.low.x = codes.x;
    raw.low.y = codes.y;
  }
  return raw;
}

LOWRANK_DEVICE void DecodeOctet(float (&r_value)[8], const GemmMmaWeight& w,
                                const float* s_codebook, const RawOctet& raw) {
  if (w.bits == 0) {
    if (w.dense_dtype == kElementF32) {
      const uint32_t words[8] = {raw.low.x,  raw.low.y,  raw.low.z,  raw.low.w,
                                 raw.high.x, raw.high.y, raw.high.z, raw.high.w};
#pragma unroll
      for (int q = 0; q < 8; ++q) r_value[q] = __uint_as_float(words[q]);
      return;
    }
    const uint32_t pairs[4] = {raw.low.x, raw.low.y, raw.low.z, raw.low.w};
    const bool bf16 = w.dense_dtype == kElementBF16;
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      r_value[2 * q] = bf16 ? ElementBF16T::Low(pairs[q]) : ElementF16T::Low(pairs[q]);
      r_value[2 * q + 1] = bf16 ? ElementBF16T::High(pairs[q]) : ElementF16T::High(pairs[q]);
    }
    return;
  }
  const float scale = DecodeScale(w, raw.scale);
#pragma unroll
  for (int q = 0; q < 8; ++q) {
    // Element q of a 4-bit octet lies in byte q / 2, the even one in the high nibble.
    const uint32_t code = w.bits == 4 ? (raw.low.x >> (8 * (q >> 1) + 4 * (1 - (q & 1)))) & 15u
                                      : ((q < 4 ? raw.low.x : raw.low.y) >> (8 * (q & 3))) & 255u;
    r_value[q] = s_codebook[code] * scale;
  }
}

/// Elements [index, index + 8), zeros from `count` on. `whole`: eight of one block, at whole words.
LOWRANK_DEVICE void LoadWeightEight(float (&r_value)[8], const GemmMmaWeight& w,
                                    const float* s_codebook, int64_t index, int count, bool whole) {
  if (whole) {
    DecodeOctet(r_value, w, s_codebook, LoadOctet(w, index));
    return;
  }
#pragma unroll
  for (int q = 0; q < 8; ++q) {
    r_value[q] = q < count ? LoadWeight(w, s_codebook, index + q) : 0.0f;
  }
}

/// The codebook of a packed weight into shared memory, by a block of 256 threads or more.
LOWRANK_DEVICE void FillCodebook(const GemmMmaWeight& w, float* s_codebook) {
  const int entry = static_cast<int>(threadIdx.x);
  if (w.bits == 0) return;
  if (entry >> w.bits == 0) s_codebook[entry] = w.codebook[entry];
  __syncthreads();
}

}  // namespace lowrank::gpu
