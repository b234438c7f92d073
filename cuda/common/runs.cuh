/// Runs of neighbouring elements of a row whose type is known at run time: whole runs by one access
/// of 16 or 8 bytes, others one by one.
#pragma once

#include "cuda/common/small_operand.cuh"

namespace lowrank::gpu {

/// 16 bytes that this launch does not write: of data that is read once past L1.
template <bool kOnce>
LOWRANK_DEVICE uint4 LoadWords(const void* g_data) {
  if constexpr (kOnce) return LoadStream16(g_data);
  return *static_cast<const uint4*>(g_data);
}

/// kRun elements of 16 bits as stored.
template <int kRun, bool kOnce>
LOWRANK_DEVICE uint4 LoadHalves(const void* g_data, int64_t index) {
  const uint16_t* g_first = static_cast<const uint16_t*>(g_data) + index;
  if constexpr (kRun == 8) {
    return LoadWords<kOnce>(g_first);
  } else {
    const uint2 half = *reinterpret_cast<const uint2*>(g_first);
    return make_uint4(half.x, half.y, 0, 0);
  }
}

template <int kRun, typename T>
LOWRANK_DEVICE void UnpackRun(T type, const uint4& raw, float (&value)[kRun]) {
  float all[8];
  Unpack(type, raw, all);
#pragma unroll
  for (int i = 0; i < kRun; ++i) value[i] = all[i];
}

template <int kRun, typename T>
LOWRANK_DEVICE void StoreHalves(T type, void* g_data, int64_t index, const float (&value)[kRun]) {
  uint16_t* g_first = static_cast<uint16_t*>(g_data) + index;
  float all[8] = {};
#pragma unroll
  for (int i = 0; i < kRun; ++i) all[i] = value[i];
  const uint4 packed = Pack(type, all);
  if constexpr (kRun == 8) {
    *reinterpret_cast<uint4*>(g_first) = packed;
  } else {
    *reinterpret_cast<uint2*>(g_first) = make_uint2(packed.x, packed.y);
  }
}

/// Where a run is in its row.
template <int kRun>
struct Span {
  int64_t col;
  bool whole;
  int count;

  __device__ __forceinline__ Span(int64_t first, int64_t cols)
      : col(first),
        whole(first + kRun <= cols),
        count(whole ? kRun : static_cast<int>(cols - first)) {}
};

/// A run of a present operand; zeros past the end of the row. Without kOnce it may stay in L1, for
/// other rows.
template <int kRun, bool kOnce = true>
LOWRANK_DEVICE void LoadRun(const SmallOperand& o, int64_t row, const Span<kRun>& span,
                            float (&value)[kRun]) {
  const int64_t index = row * o.row_elems + (o.one_col != 0 ? 0 : span.col);
  if (o.one_col != 0) {
    const float one = LoadSmall(o.element, o.data, index);
#pragma unroll
    for (int i = 0; i < kRun; ++i) value[i] = one;
    return;
  }
  if (o.vector == 0 || !span.whole) {
#pragma unroll
    for (int i = 0; i < kRun; ++i)
      value[i] = i < span.count ? LoadSmall(o.element, o.data, index + i) : 0.0f;
    return;
  }
  if (o.element == kSmallF32) {
#pragma unroll
    for (int part = 0; part < kRun / 4; ++part) {
      float four[4];
      Unpack(ElementF32(), LoadWords<kOnce>(static_cast<const float*>(o.data) + index + 4 * part),
             four);
#pragma unroll
      for (int i = 0; i < 4; ++i) value[4 * part + i] = four[i];
    }
    return;
  }
  const uint4 raw = LoadHalves<kRun, kOnce>(o.data, index);
  if (o.element == kSmallBF16) {
    UnpackRun(ElementBF16(), raw, value);
  } else {
    UnpackRun(ElementF16(), raw, value);
  }
}

template <int kRun>
LOWRANK_DEVICE void StoreRun(const SmallOperand& y, int64_t row_begin, const Span<kRun>& span,
                             const float (&value)[kRun]) {
  const int64_t index = row_begin + span.col;
  if (y.vector == 0 || !span.whole) {
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      if (i < span.count) StoreSmall(y.element, const_cast<void*>(y.data), index + i, value[i]);
    }
    return;
  }
  void* g_data = const_cast<void*>(y.data);
  if (y.element == kSmallF32) {
#pragma unroll
    for (int part = 0; part < kRun / 4; ++part) {
      const float four[4] = {value[4 * part], value[4 * part + 1], value[4 * part + 2],
                             value[4 * part + 3]};
      *reinterpret_cast<uint4*>(static_cast<float*>(g_data) + index + 4 * part) =
          Pack(ElementF32(), four);
    }
  } else if (y.element == kSmallBF16) {
    StoreHalves(ElementBF16(), g_data, index, value);
  } else {
    StoreHalves(ElementF16(), g_data, index, value);
  }
}

}  // namespace lowrank::gpu
