/// The one header that kernels include: CUDA under nvcc, the emulator's device language under a
/// host compiler (source mode). Rules for authors:
///
///   - no other CUDA header, no inline PTX outside ptx.cuh and ptx_sm90.cuh
///   - a kernel is LOWRANK_KERNEL(name, Params, kThreads, kMinBlocks) { ... p ... }: extern "C",
///     found by its name, one argument, a plain struct passed by value
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

/// kMinBlocks is what must fit on one multiprocessor: it bounds the registers of a thread.
#define LOWRANK_KERNEL(name, Params, kThreads, kMinBlocks)               \
  extern "C" __global__ void __launch_bounds__((kThreads), (kMinBlocks)) \
      name(const __grid_constant__ Params p)

namespace lowrank::gpu {

/// The block's dynamic shared memory as `Storage`, 1,024-byte aligned (what TMA's widest swizzle
/// needs).
template <typename Storage>
__device__ __forceinline__ Storage& DynamicShared() {
  extern __shared__ __align__(1024) unsigned char lowrank_shared[];
  return *reinterpret_cast<Storage*>(lowrank_shared);
}

}  // namespace lowrank::gpu

#else

#include "cuda/emulator/device.h"

#endif
