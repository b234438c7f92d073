/// Each wrapper of cuda/ptx.cuh alone, on words that the host draws: what a GPU makes of them is
/// compared with the emulator's answer (test/gpu/instructions_check.cpp). One block is one trial of
/// one warp; speed is no aim.
///
/// LOWRANK_PLANT builds three of them wrong, to prove that the comparison sees it.
#include "cuda/gpu.cuh"
#include "test/gpu/instruction_params.h"

namespace lowrank::gpu {

constexpr int kWarp = 32;

struct SharedWords {
  alignas(16) uint32_t words[512];
};

LOWRANK_DEVICE uint32_t In(const InstructionParams& p, uint32_t i) {
  return p.in[blockIdx.x * p.in_words + i];
}
LOWRANK_DEVICE void Out(const InstructionParams& p, uint32_t i, uint32_t value) {
  p.out[blockIdx.x * p.out_words + i] = value;
}

/// The block's first `count` words into shared memory.
LOWRANK_DEVICE void Fill(const InstructionParams& p, SharedWords& s, uint32_t count) {
  for (uint32_t i = threadIdx.x; i < count; i += kWarp) s.words[i] = In(p, i);
  __syncthreads();
}

/// In: 4 words a lane to copy, then one that says how many bytes are read. Each copy has its own
/// number of bytes, and the destination is filled with ones before.
template <int kBytes>
LOWRANK_DEVICE void CopyTrial(const InstructionParams& p) {
  SharedWords& s = DynamicShared<SharedWords>();
  const uint32_t lane = threadIdx.x;
  for (uint32_t i = lane; i < 128; i += kWarp) s.words[i] = 0xffffffffu;
  __syncthreads();
  const uint32_t bytes = In(p, 128 + lane) % (kBytes + 1);
  const uint32_t* from = p.in + blockIdx.x * p.in_words + lane * 4;
  if (kBytes == 16) CpAsync16(&s.words[lane * 4], from, bytes);
  if (kBytes == 8) CpAsync8(&s.words[lane * 4], from, bytes);
  if (kBytes == 4) CpAsync4(&s.words[lane * 4], from, bytes);
  CpAsyncCommit();
  CpAsyncWait<0>();
  __syncthreads();
  for (uint32_t i = lane; i < 128; i += kWarp) Out(p, i, s.words[i]);
}

LOWRANK_KERNEL(cp_async_16_kernel, InstructionParams, kWarp, 1) { CopyTrial<16>(p); }
LOWRANK_KERNEL(cp_async_8_kernel, InstructionParams, kWarp, 1) { CopyTrial<8>(p); }
LOWRANK_KERNEL(cp_async_4_kernel, InstructionParams, kWarp, 1) { CopyTrial<4>(p); }

/// Two groups; the first is read while the second may be in flight.
LOWRANK_KERNEL(cp_async_groups_kernel, InstructionParams, kWarp, 1) {
  SharedWords& s = DynamicShared<SharedWords>();
  const uint32_t lane = threadIdx.x;
  const uint32_t* from = p.in + blockIdx.x * p.in_words + lane * 4;
  CpAsync16(&s.words[lane * 4], from, 16);
  CpAsyncCommit();
  CpAsync16(&s.words[128 + lane * 4], from + 128, 16);
  CpAsyncCommit();
  CpAsyncWait<1>();
  __syncthreads();
  for (uint32_t i = lane; i < 128; i += kWarp) Out(p, i, s.words[127 - i]);
  CpAsyncWait<0>();
  __syncthreads();
  for (uint32_t i = lane; i < 128; i += kWarp) Out(p, 128 + i, s.words[255 - i]);
}

/// In: 64 rows of 4 words, then which row each lane names.
LOWRANK_DEVICE const uint32_t* NamedRow(const InstructionParams& p, SharedWords& s) {
  Fill(p, s, 256);
  return &s.words[In(p, 256 + threadIdx.x) % 64 * 4];
}
template <int kCount>
LOWRANK_DEVICE void PutMatrices(const InstructionParams& p, const uint32_t (&r)[kCount]) {
  for (int i = 0; i < kCount; ++i) {
    Out(p, threadIdx.x * kCount + static_cast<uint32_t>(i), r[i]);
  }
}

LOWRANK_KERNEL(ldmatrix_x4_kernel, InstructionParams, kWarp, 1) {
  uint32_t r[4];
  LdMatrixX4(r, NamedRow(p, DynamicShared<SharedWords>()));
  PutMatrices(p, r);
}
LOWRANK_KERNEL(ldmatrix_x2_kernel, InstructionParams, kWarp, 1) {
  uint32_t r[2];
  LdMatrixX2(r, NamedRow(p, DynamicShared<SharedWords>()));
  PutMatrices(p, r);
}
LOWRANK_KERNEL(ldmatrix_x4_trans_kernel, InstructionParams, kWarp, 1) {
  uint32_t r[4];
#if defined(LOWRANK_PLANT)
  LdMatrixX4(r, NamedRow(p, DynamicShared<SharedWords>()));
#else
  LdMatrixX4Trans(r, NamedRow(p, DynamicShared<SharedWords>()));
#endif
  PutMatrices(p, r);
}
LOWRANK_KERNEL(ldmatrix_x2_trans_kernel, InstructionParams, kWarp, 1) {
  uint32_t r[2];
  LdMatrixX2Trans(r, NamedRow(p, DynamicShared<SharedWords>()));
  PutMatrices(p, r);
}

/// In: a lane's 4 words of a, 2 of b, 4 of the accumulators.
struct MmaOperands {
  uint32_t a[4];
  uint32_t b[2];
  uint32_t d[4];
};
LOWRANK_DEVICE MmaOperands ReadMma(const InstructionParams& p) {
  MmaOperands operands;
  const uint32_t at = threadIdx.x * 10;
  for (uint32_t i = 0; i < 4; ++i) operands.a[i] = In(p, at + i);
  for (uint32_t i = 0; i < 2; ++i) operands.b[i] = In(p, at + 4 + i);
  for (uint32_t i = 0; i < 4; ++i) operands.d[i] = In(p, at + 6 + i);
  return operands;
}

#define LOWRANK_FLOAT_MMA(name, Wrapper)                                                 \
  LOWRANK_KERNEL(name, InstructionParams, kWarp, 1) {                                    \
    MmaOperands m = ReadMma(p);                                                          \
    float d[4];                                                                          \
    for (int i = 0; i < 4; ++i) d[i] = __uint_as_float(m.d[i]);                          \
    Wrapper(d, m.a, m.b[0], m.b[1]);                                                     \
    for (uint32_t i = 0; i < 4; ++i) Out(p, threadIdx.x * 4 + i, __float_as_uint(d[i])); \
  }
LOWRANK_FLOAT_MMA(mma_bf16_kernel, MmaBF16)
LOWRANK_FLOAT_MMA(mma_f16_kernel, MmaF16)
LOWRANK_FLOAT_MMA(mma_tf32_kernel, MmaTF32)

#define LOWRANK_BYTE_MMA(name, Wrapper, first)                       \
  LOWRANK_KERNEL(name, InstructionParams, kWarp, 1) {                \
    MmaOperands m = ReadMma(p);                                      \
    int32_t d[4];                                                    \
    for (int i = 0; i < 4; ++i) d[i] = static_cast<int32_t>(m.d[i]); \
    Wrapper(d, m.a, m.b[first], m.b[1 - first]);                     \
    for (uint32_t i = 0; i < 4; ++i) {                               \
      Out(p, threadIdx.x * 4 + i, static_cast<uint32_t>(d[i]));      \
    }                                                                \
  }
#if defined(LOWRANK_PLANT)
LOWRANK_BYTE_MMA(mma_s8_kernel, MmaS8, 1)
#else
LOWRANK_BYTE_MMA(mma_s8_kernel, MmaS8, 0)
#endif
LOWRANK_BYTE_MMA(mma_s8u8_kernel, MmaS8U8, 0)

LOWRANK_KERNEL(to_tf32_kernel, InstructionParams, kWarp, 1) {
  for (uint32_t i = threadIdx.x; i < 256; i += kWarp) {
#if defined(LOWRANK_PLANT)
    Out(p, i, In(p, i) & 0xffffe000u);
#else
    Out(p, i, ToTF32(__uint_as_float(In(p, i))));
#endif
  }
}

/// Conversions, byte picks and shuffles of the device language that the kernels lean on.
LOWRANK_KERNEL(language_kernel, InstructionParams, kWarp, 1) {
  const uint32_t lane = threadIdx.x;
  const uint32_t a = In(p, lane * 3);
  const uint32_t b = In(p, lane * 3 + 1);
  const uint32_t c = In(p, lane * 3 + 2);
  Out(p, lane, __byte_perm(a, b, c & 0x7777u));
  Out(p, 32 + lane, __shfl_xor_sync(0xffffffffu, a, 5));
  Out(p, 64 + lane, __shfl_sync(0xffffffffu, b, static_cast<int>(c % 32)));
  Out(p, 96 + lane, __ballot_sync(0xffffffffu, static_cast<int>(a & 1)));
  Out(p, 128 + lane, static_cast<uint32_t>(__popc(c)));
  Out(p, 160 + lane, __umulhi(a, b));
  Out(p, 192 + lane, __dp4a(a, b, c));
  Out(p, 224 + lane, __dp2a_lo(a, b, c));
}

/// 2^x of numbers from -1 to 1.
LOWRANK_KERNEL(exp2_kernel, InstructionParams, kWarp, 1) {
  const float x = static_cast<float>(In(p, threadIdx.x)) * 0x1p-31f - 1.0f;
  Out(p, threadIdx.x, __float_as_uint(Exp2(x)));
}

/// Bits as the kernels ask for them, past the compiler.
LOWRANK_KERNEL(bits_kernel, InstructionParams, kWarp, 1) {
  const uint32_t lane = threadIdx.x;
  const uint32_t a = In(p, lane * 3);
  const uint32_t b = In(p, lane * 3 + 1);
  const uint32_t c = In(p, lane * 3 + 2);
  Out(p, lane, Permute(a, b, c & 0x7777u));
  Out(p, 32 + lane, AndOr(a, b, c));
  Out(p, 64 + lane, Keep(a) ^ Keep(p.in + blockIdx.x * p.in_words)[lane]);
}

LOWRANK_KERNEL(load_stream_16_kernel, InstructionParams, kWarp, 1) {
  const uint4 v = LoadStream16(p.in + blockIdx.x * p.in_words + (31 - threadIdx.x) * 4);
  Out(p, threadIdx.x * 4, v.x);
  Out(p, threadIdx.x * 4 + 1, v.y);
  Out(p, threadIdx.x * 4 + 2, v.z);
  Out(p, threadIdx.x * 4 + 3, v.w);
}

/// Half of the lanes want nothing; what they get is not looked at.
LOWRANK_KERNEL(load_stream_16_if_kernel, InstructionParams, kWarp, 1) {
  const bool wanted = (In(p, 128 + threadIdx.x) & 1) != 0;
  const uint4 v = LoadStream16If(wanted, p.in + blockIdx.x * p.in_words + (31 - threadIdx.x) * 4);
  Out(p, threadIdx.x * 4, wanted ? v.x : 0);
  Out(p, threadIdx.x * 4 + 1, wanted ? v.y : 0);
  Out(p, threadIdx.x * 4 + 2, wanted ? v.z : 0);
  Out(p, threadIdx.x * 4 + 3, wanted ? v.w : 0);
}

LOWRANK_KERNEL(store_16_kernel, InstructionParams, kWarp, 1) {
  const uint32_t at = threadIdx.x * 4;
  Store16(p.out + blockIdx.x * p.out_words + (31 - threadIdx.x) * 4,
          uint4{In(p, at), In(p, at + 1), In(p, at + 2), In(p, at + 3)});
}

/// The order of arrival is anyone's, the sum and the set of old values are not.
LOWRANK_KERNEL(atomics_kernel, InstructionParams, kWarp, 1) {
  uint32_t* counter = p.out + blockIdx.x * p.out_words + 64;
  uint32_t* flag = counter + 1;
  if (threadIdx.x == 0) {
    *counter = In(p, 0);
    StoreRelease(flag, In(p, 1));
  }
  __syncthreads();
  const uint32_t old = AtomicAddAcqRel(counter, 1);
  const uint32_t rank = (old - In(p, 0)) % 32;
  Out(p, rank, old);
  NamedBarrier(1, kWarp);
  Out(p, 32 + threadIdx.x, LoadAcquire(flag) + LoadAcquire(counter));
}

/// Launched twice in a row, the second allowed to begin early: it adds to what the first left.
LOWRANK_EARLY_KERNEL(dependent_kernel, InstructionParams, 32, 1) {
  GridDependencyWait();
  const uint32_t at = blockIdx.x * p.out_words + threadIdx.x;
  p.out[at] = 3 * p.out[at] + In(p, threadIdx.x);
}

}  // namespace lowrank::gpu
