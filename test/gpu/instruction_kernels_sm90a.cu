/// The wrappers of cuda/ptx_sm90.cuh, like instruction_kernels_sm80.cu: copies by tensor maps in
/// every swizzle, with boxes that leave the tensor; transaction barriers; products of warpgroups;
/// clusters.
#include "cuda/ptx_sm90.cuh"
#include "test/gpu/instruction_params.h"

namespace lowrank::gpu {

constexpr int kGroup = 128;

struct TensorShared {
  alignas(1024) uint64_t barriers[256];
  alignas(1024) uint32_t a[64 * 32];
  alignas(1024) uint32_t b[256 * 32];
};

LOWRANK_DEVICE uint32_t In(const InstructionParams& p, uint32_t i) {
  return p.in[blockIdx.x * p.in_words + i];
}
LOWRANK_DEVICE void Out(const InstructionParams& p, uint32_t i, uint32_t value) {
  p.out[blockIdx.x * p.out_words + i] = value;
}

/// -16 to 79 in a tensor of 64: boxes begin before it and end behind it.
LOWRANK_DEVICE int32_t Coordinate(uint32_t word) { return static_cast<int32_t>(word % 96) - 16; }

template <int kRowBytes>
LOWRANK_DEVICE void CopyBox(const TensorInstructionParams& p) {
  TensorShared& s = DynamicShared<TensorShared>();
  if (threadIdx.x == 0) {
    BarrierInit(s.barriers, 1);
    FenceBarrierInit();
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    PrefetchTensorMap(&p.a);
    BarrierArriveExpectBytes(s.barriers, kCopyBoxRows * kRowBytes);
    FenceProxyAsyncGlobal();  // nobody has written the tensor: the copy is the same with it
    TensorLoad2D(s.a, &p.a, Coordinate(In(p.words, 0)), Coordinate(In(p.words, 1)), s.barriers);
  }
  BarrierWait(s.barriers, 0);
  for (uint32_t i = threadIdx.x; i < kCopyBoxRows * kRowBytes / 4; i += kGroup) {
    Out(p.words, i, s.a[i]);
  }
}

LOWRANK_KERNEL(tensor_load_plain_kernel, TensorInstructionParams, kGroup, 1) { CopyBox<128>(p); }
LOWRANK_KERNEL(tensor_load_32_kernel, TensorInstructionParams, kGroup, 1) { CopyBox<32>(p); }
LOWRANK_KERNEL(tensor_load_64_kernel, TensorInstructionParams, kGroup, 1) { CopyBox<64>(p); }
LOWRANK_KERNEL(tensor_load_128_kernel, TensorInstructionParams, kGroup, 1) { CopyBox<128>(p); }

/// A warp's rows of a [64, 16], from the 16 columns `step` of a tile with a swizzle of 128 bytes.
LOWRANK_DEVICE void LoadA(const uint32_t* s_tile, uint32_t step, uint32_t (&a)[4]) {
  const uint32_t lane = threadIdx.x % 32;
#pragma unroll
  for (uint32_t i = 0; i < 4; ++i) {
    const uint32_t row = threadIdx.x / 32 * 16 + i % 2 * 8 + lane / 4;
    const uint32_t chunk = step * 2 + i / 2;
    a[i] = s_tile[row * 32 + (chunk ^ row % 8) * 4 + lane % 4];
  }
}

/// d [64, n] += a [64, 64] · b [n, 64]ᵀ, n = 2 kAcc; the accumulators' first values are given.
template <int kAcc, bool kBF16, bool kRegisters = false>
LOWRANK_DEVICE void Product(const TensorInstructionParams& p) {
  TensorShared& s = DynamicShared<TensorShared>();
  if (threadIdx.x == 0) {
    BarrierInit(s.barriers, 1);
    BarrierInit(s.barriers + 1, kGroup);
    FenceBarrierInit();
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    BarrierArriveExpectBytes(s.barriers, 64 * 128 + 2 * kAcc * 128);
    const int32_t trial = static_cast<int32_t>(blockIdx.x);
    TensorLoad2D(s.a, &p.a, 0, trial * 64, s.barriers);
    TensorLoad2D(s.b, &p.b, 0, trial * 2 * kAcc, s.barriers);
  }
  BarrierWait(s.barriers, 0);
  // One address each, and constant distances: with 128 accumulators there are no registers to
  // spare.
  const uint32_t* in = p.words.in + blockIdx.x * p.words.in_words + threadIdx.x;
  float d[kAcc];
#pragma unroll
  for (int i = 0; i < kAcc; ++i) d[i] = __uint_as_float(in[i * kGroup]);
  const uint64_t a = WgmmaDescriptor(s.a);
  const uint64_t b = WgmmaDescriptor(s.b);
  uint32_t from_registers[4][4];
  if constexpr (kRegisters) {
#pragma unroll
    for (uint32_t step = 0; step < 4; ++step) LoadA(s.a, step, from_registers[step]);
    // This form adds always.
#pragma unroll
    for (int i = 0; i < kAcc; ++i) d[i] = blockIdx.x % 2 == 0 ? d[i] : 0.0f;
    // a is read by all: nobody needs it, but this is where threads arrive one by one.
    BarrierArrive(s.barriers + 1);
    BarrierWait(s.barriers + 1, 0);
  }
  WgmmaFence();
#pragma unroll
  for (uint32_t step = 0; step < 4; ++step) {
    // The trial's number decides whether the first values count.
    const uint32_t accumulate = step > 0 || blockIdx.x % 2 == 0;
    if constexpr (kRegisters && kBF16) {
      WgmmaBF16(d, from_registers[step], b + 2 * step);
    } else if constexpr (kRegisters) {
      WgmmaF16(d, from_registers[step], b + 2 * step);
    } else if constexpr (kBF16) {
      WgmmaBF16(d, a + 2 * step, b + 2 * step, accumulate);
    } else {
      WgmmaF16(d, a + 2 * step, b + 2 * step, accumulate);
    }
  }
  WgmmaCommit();
  WgmmaWait<0>();
  uint32_t* out = p.words.out + blockIdx.x * p.words.out_words + threadIdx.x;
#pragma unroll
  for (int i = 0; i < kAcc; ++i) out[i * kGroup] = __float_as_uint(d[i]);
}

LOWRANK_KERNEL(wgmma_bf16_n128_kernel, TensorInstructionParams, kGroup, 1) { Product<64, true>(p); }
LOWRANK_KERNEL(wgmma_f16_n128_kernel, TensorInstructionParams, kGroup, 1) { Product<64, false>(p); }
LOWRANK_KERNEL(wgmma_bf16_n256_kernel, TensorInstructionParams, kGroup, 1) {
  Product<128, true>(p);
}
LOWRANK_KERNEL(wgmma_f16_n256_kernel, TensorInstructionParams, kGroup, 1) {
  Product<128, false>(p);
}

LOWRANK_KERNEL(wgmma_bf16_n64_registers_kernel, TensorInstructionParams, kGroup, 1) {
  Product<32, true, true>(p);
}
LOWRANK_KERNEL(wgmma_f16_n64_registers_kernel, TensorInstructionParams, kGroup, 1) {
  Product<32, false, true>(p);
}
LOWRANK_KERNEL(wgmma_bf16_n128_registers_kernel, TensorInstructionParams, kGroup, 1) {
  Product<64, true, true>(p);
}
LOWRANK_KERNEL(wgmma_f16_n128_registers_kernel, TensorInstructionParams, kGroup, 1) {
  Product<64, false, true>(p);
}

/// The same of bytes, s8 by u8: d [64, 256] s32 += a [64, 128] · b [256, 128]ᵀ.
LOWRANK_KERNEL(wgmma_s8u8_n256_kernel, TensorInstructionParams, kGroup, 1) {
  TensorShared& s = DynamicShared<TensorShared>();
  if (threadIdx.x == 0) {
    BarrierInit(s.barriers, 1);
    FenceBarrierInit();
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    BarrierArriveExpectBytes(s.barriers, 64 * 128 + 256 * 128);
    const int32_t trial = static_cast<int32_t>(blockIdx.x);
    TensorLoad2D(s.a, &p.a, 0, trial * 64, s.barriers);
    TensorLoad2D(s.b, &p.b, 0, trial * 256, s.barriers);
  }
  BarrierWait(s.barriers, 0);
  const uint32_t* in = p.words.in + blockIdx.x * p.words.in_words + threadIdx.x;
  int32_t d[128];
#pragma unroll
  for (int i = 0; i < 128; ++i) d[i] = static_cast<int32_t>(in[i * kGroup]);
  const uint64_t a = WgmmaDescriptor(s.a);
  const uint64_t b = WgmmaDescriptor(s.b);
  WgmmaFence();
#pragma unroll
  for (uint32_t step = 0; step < 4; ++step) {
    WgmmaS8U8(d, a + 2 * step, b + 2 * step, step > 0 || blockIdx.x % 2 == 0);
  }
  WgmmaCommit();
  WgmmaWait<0>();
  uint32_t* out = p.words.out + blockIdx.x * p.words.out_words + threadIdx.x;
#pragma unroll
  for (int i = 0; i < 128; ++i) out[i * kGroup] = static_cast<uint32_t>(d[i]);
}

/// Pairs of blocks: each loads its half of the box for both, and tells the other when it is read.
LOWRANK_KERNEL(cluster_kernel, TensorInstructionParams, kGroup, 1) {
  TensorShared& s = DynamicShared<TensorShared>();
  const uint32_t rank = ClusterRank();
  uint64_t* full = s.barriers;
  uint64_t* read = s.barriers + 1;
  if (threadIdx.x == 0) {
    BarrierInit(full, 1);
    BarrierInit(read, 2);
    FenceBarrierInit();
  }
  // Ordinary stores that the copies of both blocks write over.
  for (uint32_t i = threadIdx.x; i < kCopyBoxRows * 32; i += kGroup) s.a[i] = s.b[i] = ~0u;
  FenceProxyAsyncShared();
  __syncthreads();
  ClusterSync();
  if (threadIdx.x == 0) {
    BarrierArriveExpectBytes(full, 2 * kCopyBoxRows * 128);
    uint32_t* half = rank == 0 ? s.a : s.b;
    TensorLoad2DMulticast(half, &p.a, 0, static_cast<int32_t>(rank) * 7, full, 3);
  }
  BarrierWait(full, 0);
  ClusterSync();
  for (uint32_t i = threadIdx.x * 4; i < kCopyBoxRows * 32; i += kGroup * 4) {
    const float4 half = LoadFromPeer(reinterpret_cast<const float4*>(&s.b[i]), rank ^ 1);
    Out(p.words, i, s.a[i] + 3 * __float_as_uint(half.x) + rank);
    Out(p.words, i + 1, s.a[i + 1] + 3 * __float_as_uint(half.y) + rank);
    Out(p.words, i + 2, s.a[i + 2] + 3 * __float_as_uint(half.z) + rank);
    Out(p.words, i + 3, s.a[i + 3] + 3 * __float_as_uint(half.w) + rank);
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    BarrierArriveAt(read, 0);
    BarrierArriveAt(read, 1);
  }
  BarrierWait(read, 0);
  // No block leaves while the other may still signal it.
  ClusterSync();
}

struct StMatrixShared {
  alignas(16) uint32_t words[4 * 64];
};

/// In: 4 words a lane, then a permutation seed; each lane names another row of the 32.
LOWRANK_KERNEL(stmatrix_kernel, InstructionParams, 32, 1) {
  StMatrixShared& s = DynamicShared<StMatrixShared>();
  uint32_t r[4];
  for (uint32_t i = 0; i < 4; ++i) r[i] = In(p, threadIdx.x * 4 + i);
  const uint32_t row = (threadIdx.x * (2 * (In(p, 128) % 16) + 1) + In(p, 129)) % 32;
  StMatrixX4(&s.words[row * 4], r);
  __syncthreads();
  for (uint32_t i = threadIdx.x; i < 128; i += 32) Out(p, i, s.words[i]);
}

/// Three warpgroups, of which one gives its registers to the others.
LOWRANK_KERNEL(registers_kernel, InstructionParams, 3 * kGroup, 1) {
  if (threadIdx.x < kGroup) {
    RegistersDownTo<40>();
    Out(p, threadIdx.x, In(p, threadIdx.x) + 1);
  } else {
    RegistersUpTo<232>();
    Out(p, threadIdx.x, In(p, threadIdx.x) * 3);
  }
}

}  // namespace lowrank::gpu
