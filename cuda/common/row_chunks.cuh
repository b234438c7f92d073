/// Rows that a block of threads reads twice: forwards for the largest magnitude, then backwards for
/// the bytes computed from it. The backward pass starts with what the first has left in registers,
/// and finds the rest in L1 or L2, which hold the row's end.
#pragma once

#include "cuda/common/element.cuh"

namespace lowrank::gpu {

/// A group of x as stored.
template <typename T>
LOWRANK_DEVICE uint4 LoadGroup(const void* g_x, int64_t index, bool whole) {
  const typename T::Bits* g_from = static_cast<const typename T::Bits*>(g_x) + index;
  if (whole) return *reinterpret_cast<const uint4*>(g_from);
  uint32_t words[4] = {};
  constexpr int kInWord = 4 / static_cast<int>(sizeof(typename T::Bits));
#pragma unroll
  for (int i = 0; i < Group<T>::kElems; ++i) {
    words[i / kInWord] |= static_cast<uint32_t>(g_from[i]) << (i % kInWord * 16);
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

/// One byte per element of a group, at its place.
template <int kElems>
LOWRANK_DEVICE void StoreGroupBytes(void* g_bytes, const uint32_t (&words)[2]) {
  if constexpr (kElems == 8) {
    *static_cast<uint2*>(g_bytes) = make_uint2(words[0], words[1]);
  } else {
    *static_cast<uint32_t*>(g_bytes) = words[0];
  }
}

/// The largest value of all threads of a block, returned to all; s_largest has a word per warp.
LOWRANK_DEVICE uint32_t LargestOfBlock(uint32_t largest, uint32_t* s_largest, int threads) {
  constexpr uint32_t kLanes = 0xffffffffu;
  const int tid = static_cast<int>(threadIdx.x);
  largest = __reduce_max_sync(kLanes, largest);
  if (tid % 32 == 0) s_largest[tid / 32] = largest;
  __syncthreads();
  const int lane = tid % 32;
  return __reduce_max_sync(kLanes, lane < threads / 32 ? s_largest[lane] : 0u);
}

/// A chunk is kUnroll groups per thread, adjacent across threads; T: the row's type.
template <typename T, int kUnroll>
struct RowChunks {
  static constexpr int kElems = Group<T>::kElems;

  const void* g_x;
  int64_t begin;  // where in x the row begins, in elements
  int64_t K;      // a multiple of kElems
  int threads;    // of the block
  int64_t last;   // chunk: (K - 1) / (threads · kUnroll · kElems)
  bool whole;     // x is 16-byte aligned
  uint4 raw[kUnroll] = {};

  __device__ __forceinline__ int64_t Column(int64_t chunk, int u) const {
    const int64_t group = (chunk * kUnroll + u) * threads;
    return (group + static_cast<int>(threadIdx.x)) * kElems;
  }

  /// Zeros past the end of the row change neither its maximum nor a sum.
  __device__ __forceinline__ void Load(int64_t chunk) {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t k = Column(chunk, u);
      raw[u] = make_uint4(0, 0, 0, 0);
      if (k < K) raw[u] = LoadGroup<T>(g_x, begin + k, whole);
    }
  }

  /// The largest of what this thread reads, as bits, which order by magnitude, with infinities and
  /// NaN last.
  __device__ __forceinline__ uint32_t Largest() {
    uint32_t largest = 0;
#pragma unroll 1
    for (int64_t chunk = 0; chunk <= last; ++chunk) {
      Load(chunk);
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        float value[kElems];
        Unpack(T(), raw[u], value);
#pragma unroll
        for (int i = 0; i < kElems; ++i) {
          largest = max(largest, __float_as_uint(value[i]) & 0x7fffffffu);
        }
      }
    }
    return largest;
  }

  /// Calls make(k, value) for each group of the row, from the last chunk of Largest() to the first.
  template <typename Make>
  __device__ __forceinline__ void Back(const Make& make) {
#pragma unroll 1
    for (int64_t chunk = last; chunk >= 0; --chunk) {
      if (chunk != last) Load(chunk);
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const int64_t k = Column(chunk, u);
        if (k >= K) continue;
        float value[kElems];
        Unpack(T(), raw[u], value);
        make(k, value);
      }
    }
  }
};

}  // namespace lowrank::gpu
