/// The one header that kernels include: CUDA under nvcc, the emulator's device language under a
/// host compiler (source mode). Rules for authors:
///
///   - no other CUDA header, no inline PTX outside ptx.cuh and ptx_sm90.cuh
///   - a kernel is LOWRANK_KERNEL(name, Params, kThreads, kMinBlocks) { ... p ... }: extern "C",
///     found by its name, one argument, a plain struct passed by value
///   - from sm_90 on the launches of an op overlap (programmatic dependent launch). A
///     LOWRANK_KERNEL allows the next one to start, waits for those before it, and runs its body.
///     A kernel that can start with work that does not depend on them is a LOWRANK_EARLY_KERNEL
///     and calls GridDependencyWait() itself: before any store, before any load of what they wrote
///     (plan.h), and in any case before it ends, since the next launch waits only for this one
///   - ld.global.nc and __ldg are for memory that neither this launch nor one that it overlaps
///     writes: L1 may hold old contents of it
///   - accumulators and fragments of wgmma are not touched from the fence before their products
///     to the wait after them: fragments of two groups in flight are two arrays
///   - a ring's writer calls SlotFilled(slot, turn) and its reader SlotRead(slot, turn), unless the
///     phases of mbarriers express the same
///   - shared memory is one struct, taken with DynamicShared<Storage>(); its size is sizeof
///   - contraction is off in both compilers (nvcc -fmad=false, -ffp-contract=off): where an fma is
///     meant, write fmaf, so that every mode gives the same bits
///   - 16-byte accesses go through uint4 / float4, so that they stay whole in every mode
#pragma once

#include <cstdint>

#if defined(__CUDACC__)

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#define LOWRANK_DEVICE static __device__ __forceinline__

/// kMinBlocks must fit on one multiprocessor: it bounds the registers of a thread.
#define LOWRANK_KERNEL(name, Params, kThreads, kMinBlocks) \
  LOWRANK_CUDA_KERNEL(name, Params, kThreads, kMinBlocks, ::lowrank::gpu::GridDependencyWait())
#define LOWRANK_EARLY_KERNEL(name, Params, kThreads, kMinBlocks) \
  LOWRANK_CUDA_KERNEL(name, Params, kThreads, kMinBlocks, )
#define LOWRANK_CUDA_KERNEL(name, Params, kThreads, kMinBlocks, wait)    \
  LOWRANK_DEVICE void name##_body(const Params& p);                      \
  extern "C" __global__ void __launch_bounds__((kThreads), (kMinBlocks)) \
      name(const __grid_constant__ Params p) {                           \
    ::lowrank::gpu::GridDependencyLaunch();                              \
    wait;                                                                \
    name##_body(p);                                                      \
  }                                                                      \
  LOWRANK_DEVICE void name##_body([[maybe_unused]] const Params& p)

namespace lowrank::gpu {

/// The block's dynamic shared memory as `Storage`, 1,024-byte aligned (required by the widest
/// swizzle of TMA).
template <typename Storage>
__device__ __forceinline__ Storage& DynamicShared() {
  extern __shared__ __align__(1024) unsigned char lowrank_shared[];
  return *reinterpret_cast<Storage*>(lowrank_shared);
}

}  // namespace lowrank::gpu

#endif

#include "cuda/ptx.cuh"  // what the macros call; for a host compiler the emulator's language
