/// Copies from one element type to another.
///
///   dst[i] = src[i], rounded once
///
/// Operands   src, dst [elems] f32 | bf16 | f16
/// Grid       ceil(elems / (kThreads · kUnroll · elements of a group)); no shared memory
/// Numerics   native/core/dtype.h; within one type the bits themselves
/// Needs      nothing: pointers that are not 16-byte aligned, and the last elements, go one by one
///
/// Budget     f32 <-> 16-bit: 6 bytes an element. At 3.0 TB/s and 1.755 GHz each of 132
///            multiprocessors sees 2.2 elements a clock; load, convert (6 to 10 integer
///            instructions) and store are 27 of 128 issue slots. Bytes in flight: kUnroll · 16 ·
///            2,048 threads = 128 KiB a multiprocessor, where 16 KiB cover the latency.
#include "cuda/common/element.cuh"
#include "native/host_device/params/cast.h"

namespace lowrank::gpu {
namespace {

constexpr int kThreads = kCastThreads;
constexpr int kUnroll = kCastUnroll;

/// Elements that a lane moves at a time: 16 bytes of the wider type.
template <typename Src, typename Dst>
struct Step {
  static constexpr int kElems =
      Group<Src>::kElems < Group<Dst>::kElems ? Group<Src>::kElems : Group<Dst>::kElems;
};

/// kElems elements of a type whose group they fill, or half of it.
template <typename T, int kElems>
LOWRANK_DEVICE uint4 LoadRun(const void* g_src, int64_t run) {
  if constexpr (kElems == Group<T>::kElems) {
    return LoadStream16(static_cast<const uint4*>(g_src) + run);
  } else {
    const uint2 half = static_cast<const uint2*>(g_src)[run];
    return make_uint4(half.x, half.y, 0, 0);
  }
}

template <typename Src, typename Dst>
LOWRANK_DEVICE void CastBody(const CastParams& p) {
  constexpr int kElems = Step<Src, Dst>::kElems;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * (kThreads * kUnroll) + threadIdx.x;
  auto is_whole = [&](int64_t run) { return p.vector != 0 && (run + 1) * kElems <= p.elems; };

  uint4 raw[kUnroll];
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    const int64_t run = first + u * kThreads;
    if (is_whole(run)) raw[u] = LoadRun<Src, kElems>(p.src, run);
  }
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    const int64_t run = first + u * kThreads;
    if (!is_whole(run)) {
      for (int64_t i = run * kElems; i < p.elems && i < (run + 1) * kElems; ++i) {
        StoreElement(Dst(), p.dst, i, LoadElement(Src(), p.src, i));
      }
      continue;
    }
    float value[Group<Src>::kElems];
    Unpack(Src(), raw[u], value);
    if constexpr (kElems == Group<Dst>::kElems) {
      float out[kElems];
#pragma unroll
      for (int i = 0; i < kElems; ++i) out[i] = value[i];
      static_cast<uint4*>(p.dst)[run] = Pack(Dst(), out);
    } else {
      float out[Group<Dst>::kElems] = {};
#pragma unroll
      for (int i = 0; i < kElems; ++i) out[i] = value[i];
      const uint4 packed = Pack(Dst(), out);
      static_cast<uint2*>(p.dst)[run] = make_uint2(packed.x, packed.y);
    }
  }
}

LOWRANK_DEVICE void CopyBody(const CastParams& p) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * (kThreads * kUnroll) + threadIdx.x;
  auto is_whole = [&](int64_t run) { return p.vector != 0 && (run + 1) * 16 <= p.elems; };
  uint4 raw[kUnroll];
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    const int64_t run = first + u * kThreads;
    if (is_whole(run)) raw[u] = LoadStream16(static_cast<const uint4*>(p.src) + run);
  }
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    const int64_t run = first + u * kThreads;
    if (is_whole(run)) {
      static_cast<uint4*>(p.dst)[run] = raw[u];
      continue;
    }
    for (int64_t i = run * 16; i < p.elems && i < (run + 1) * 16; ++i) {
      static_cast<uint8_t*>(p.dst)[i] = static_cast<const uint8_t*>(p.src)[i];
    }
  }
}

}  // namespace

LOWRANK_KERNEL(cast_copy_kernel, CastParams, kThreads, 4) { CopyBody(p); }

#define LOWRANK_CAST_KERNELS(X)        \
  X(f32_bf16, ElementF32, ElementBF16) \
  X(f32_f16, ElementF32, ElementF16)   \
  X(bf16_f32, ElementBF16, ElementF32) \
  X(bf16_f16, ElementBF16, ElementF16) \
  X(f16_f32, ElementF16, ElementF32)   \
  X(f16_bf16, ElementF16, ElementBF16)

#define LOWRANK_DEFINE(name, Src, Dst) \
  LOWRANK_KERNEL(cast_##name##_kernel, CastParams, kThreads, 4) { CastBody<Src, Dst>(p); }
LOWRANK_CAST_KERNELS(LOWRANK_DEFINE)
#undef LOWRANK_DEFINE

}  // namespace lowrank::gpu
