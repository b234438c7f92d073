/// Normal and uniform numbers, the same bits as on every device (native/host_device/random.h).
///
///   y[i] = mean + scale · draw(seed, i), or 1 where dropout keeps element i and 0 where it does
///   not
///
/// Operands   y [elems] f32 | bf16 | f16
/// Grid       ceil(elems / (4 · kThreads)); one Philox group of four elements a thread
/// Numerics   double throughout, rounded once to y's type
/// Needs      nothing: a y that is not aligned to four elements is written one by one
///
/// Budget     about 150 double instructions an element (the divisions of the series dominate). With
///            64 of them a clock and multiprocessor (sm_80, sm_90) a 4096 x 4096 tensor takes 0.2
///            ms where the memory would take 0.01: it runs once, at the start of a training. A mask
///            of dropout takes 25 integer instructions an element, 0.04 ms.
#include "cuda/common/element.cuh"
#include "native/host_device/params/random.h"
#include "native/host_device/random.h"

namespace lowrank::gpu {
namespace {

constexpr int kThreads = kRandomThreads;

template <typename T>
LOWRANK_DEVICE void RandomBody(const RandomParams& p) {
  const int64_t group = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t begin = group * 4;
  if (begin >= p.elems) return;
  double draw[4];
  const uint64_t seed = p.seed + (p.seed_at == nullptr ? 0 : *p.seed_at);
  if (p.draw == kRandomKeep) {
    KeepGroup(seed, static_cast<uint64_t>(group), p.threshold, draw);
  } else {
    RandomGroup(p.draw == kRandomNormal, seed, static_cast<uint64_t>(group), p.mean, p.scale, draw);
  }
  uint32_t bits[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) bits[i] = BitsFromDouble(T(), draw[i]);
  if (p.vector == 0 || begin + 4 > p.elems) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (begin + i < p.elems) {
        static_cast<typename T::Bits*>(p.y)[begin + i] = static_cast<typename T::Bits>(bits[i]);
      }
    }
  } else if constexpr (sizeof(typename T::Bits) == 4) {
    static_cast<uint4*>(p.y)[group] = make_uint4(bits[0], bits[1], bits[2], bits[3]);
  } else {
    static_cast<uint2*>(p.y)[group] = make_uint2(bits[0] | bits[1] << 16, bits[2] | bits[3] << 16);
  }
}

}  // namespace

#define LOWRANK_RANDOM_KERNELS(X) \
  X(f32, ElementF32)              \
  X(bf16, ElementBF16)            \
  X(f16, ElementF16)

#define LOWRANK_DEFINE(name, T) \
  LOWRANK_KERNEL(random_##name##_kernel, RandomParams, kThreads, 4) { RandomBody<T>(p); }
LOWRANK_RANDOM_KERNELS(LOWRANK_DEFINE)
#undef LOWRANK_DEFINE

}  // namespace lowrank::gpu
