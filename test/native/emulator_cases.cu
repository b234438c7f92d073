/// Kernels with one planted bug each, and correct ones beside them: what the emulator's checks must
/// find, and must not. 128 threads a block. They compile under nvcc too, so that the same cases run
/// from translated PTX.
#include "cuda/gpu.cuh"
#include "test/native/emulator_cases.h"

namespace lowrank::gpu {
namespace {

struct Words {
  float v[128];
};
struct OneWordMore {
  float v[129];
};
struct Copies {
  float4 v[128];
};
struct Matrix {
  uint16_t v[16][64];
};

LOWRANK_DEVICE float Thread() { return static_cast<float>(threadIdx.x); }

}  // namespace

// --------------------------------------------------------------------------------- shared memory

LOWRANK_KERNEL(case_missing_barrier, EmulatorCaseParams, 128, 1) {
  Words& s = DynamicShared<Words>();
  s.v[threadIdx.x] = Thread();
  p.y[threadIdx.x] = s.v[(threadIdx.x + 32) & 127];
}

LOWRANK_KERNEL(case_missing_syncwarp, EmulatorCaseParams, 128, 1) {
  Words& s = DynamicShared<Words>();
  s.v[threadIdx.x] = Thread();
  p.y[threadIdx.x] = s.v[threadIdx.x ^ 1];
}

LOWRANK_KERNEL(case_write_after_read, EmulatorCaseParams, 128, 1) {
  Words& s = DynamicShared<Words>();
  s.v[threadIdx.x] = Thread();
  __syncthreads();
  const float v = s.v[127 - threadIdx.x];
  s.v[threadIdx.x] = v + 1;
  __syncthreads();
  p.y[threadIdx.x] = s.v[threadIdx.x];
}

/// Warp 1 overwrites what warp 0 has read, always later, but nothing says so: a relaxed atomic is
/// no release.
LOWRANK_KERNEL(case_overwrites_read_of_other_warp, EmulatorCaseParams, 128, 1) {
  Words& s = DynamicShared<Words>();
  s.v[threadIdx.x] = Thread();
  __syncthreads();
  if (threadIdx.x < 32) {
    p.y[threadIdx.x] = s.v[threadIdx.x + 32];
    __syncwarp();
    if (threadIdx.x == 0) atomicAdd(p.counter, 1u);
  } else if (threadIdx.x < 64) {
    while (atomicAdd(p.counter, 0u) == 0) __nanosleep(20);
    s.v[threadIdx.x] = 5;
  }
}

LOWRANK_KERNEL(case_synchronised, EmulatorCaseParams, 128, 1) {
  Words& s = DynamicShared<Words>();
  s.v[threadIdx.x] = Thread();
  __syncwarp();
  p.y[threadIdx.x] = s.v[threadIdx.x ^ 1];
  __syncwarp();
  s.v[threadIdx.x] = 1;
  __syncthreads();
  p.y[threadIdx.x] += s.v[127 - threadIdx.x];
}

/// Lanes write neighbouring bytes of a word: no race.
LOWRANK_KERNEL(case_neighbouring_bytes, EmulatorCaseParams, 128, 1) {
  Words& s = DynamicShared<Words>();
  auto* bytes = reinterpret_cast<unsigned char*>(s.v);
  bytes[threadIdx.x] = static_cast<unsigned char>(threadIdx.x);
  __syncthreads();
  p.y[threadIdx.x] = static_cast<float>(bytes[127 - threadIdx.x]);
}

/// Two lanes write one byte of a word.
LOWRANK_KERNEL(case_same_byte, EmulatorCaseParams, 128, 1) {
  Words& s = DynamicShared<Words>();
  auto* bytes = reinterpret_cast<unsigned char*>(s.v);
  bytes[threadIdx.x / 2] = static_cast<unsigned char>(threadIdx.x);
  __syncthreads();
  p.y[threadIdx.x] = static_cast<float>(bytes[threadIdx.x / 2]);
}

LOWRANK_KERNEL(case_shared_out_of_bounds, EmulatorCaseParams, 128, 1) {
  float* s = DynamicShared<Words>().v;
  s[threadIdx.x + 1] = 1;
  __syncthreads();
  p.y[threadIdx.x] = s[threadIdx.x + 1];
}

/// Sixteen bytes, of which four are there.
LOWRANK_KERNEL(case_shared_ends_within, EmulatorCaseParams, 128, 1) {
  OneWordMore& s = DynamicShared<OneWordMore>();
  if (threadIdx.x == 0) *reinterpret_cast<float4*>(s.v + 128) = make_float4(1, 2, 3, 4);
  __syncthreads();
  p.y[threadIdx.x] = s.v[128];
}

/// Another warp writes the last word of sixteen bytes.
LOWRANK_KERNEL(case_race_in_last_word, EmulatorCaseParams, 128, 1) {
  Words& s = DynamicShared<Words>();
  if (threadIdx.x == 0) *reinterpret_cast<float4*>(s.v) = make_float4(1, 2, 3, 4);
  if (threadIdx.x == 32) s.v[3] = 5;
  __syncthreads();
  p.y[threadIdx.x] = s.v[threadIdx.x % 4];
}

/// Nobody has written the last word of sixteen bytes.
LOWRANK_KERNEL(case_uninitialised_last_word, EmulatorCaseParams, 128, 1) {
  Words& s = DynamicShared<Words>();
  if (threadIdx.x < 3) s.v[threadIdx.x] = Thread();
  __syncthreads();
  const float4 v = *reinterpret_cast<const float4*>(s.v);
  p.y[threadIdx.x] = v.x + v.y + v.z + v.w;
}

LOWRANK_KERNEL(case_misaligned, EmulatorCaseParams, 128, 1) {
  Words& s = DynamicShared<Words>();
  s.v[threadIdx.x] = 0;
  __syncthreads();
  if (threadIdx.x == 0) {
    const float4 v = *reinterpret_cast<const float4*>(s.v + 1);
    p.y[0] = v.x + v.y + v.z + v.w;
  } else {
    p.y[threadIdx.x] = 0;
  }
}

LOWRANK_KERNEL(case_uninitialised_shared, EmulatorCaseParams, 128, 1) {
  Words& s = DynamicShared<Words>();
  if (threadIdx.x < 64) s.v[threadIdx.x] = 1;
  __syncthreads();
  p.y[threadIdx.x] = s.v[threadIdx.x];
}

LOWRANK_KERNEL(case_shared_too_small, EmulatorCaseParams, 128, 1) {
  Copies& s = DynamicShared<Copies>();
  s.v[threadIdx.x] = float4{1, 1, 1, 1};
  __syncthreads();
  p.y[threadIdx.x] = s.v[127 - threadIdx.x].x;
}

// --------------------------------------------------------------------------------- global memory

/// y has 128 elements, x 512.
LOWRANK_KERNEL(case_global_read_out_of_bounds, EmulatorCaseParams, 128, 1) {
  p.y[threadIdx.x] = p.x[threadIdx.x + 385];
}

LOWRANK_KERNEL(case_global_write_out_of_bounds, EmulatorCaseParams, 128, 1) {
  p.y[threadIdx.x + 1] = 0;
}

LOWRANK_KERNEL(case_uninitialised_global, EmulatorCaseParams, 128, 1) {
  p.y[threadIdx.x] = p.scratch[threadIdx.x];
}

LOWRANK_KERNEL(case_trap, EmulatorCaseParams, 128, 1) {
  p.y[threadIdx.x] = 1;
  if (threadIdx.x == 77) __trap();
}

LOWRANK_KERNEL(case_wild_pointer, EmulatorCaseParams, 128, 1) {
  if (threadIdx.x == 77) *reinterpret_cast<volatile float*>(uintptr_t{64}) = 1;
  p.y[threadIdx.x] = 1;
}

LOWRANK_KERNEL(case_blocks_write_one_word, EmulatorCaseParams, 128, 1) {
  p.y[threadIdx.x] = static_cast<float>(blockIdx.x);
}

/// Every block reads what one of them writes.
LOWRANK_KERNEL(case_block_overwrites_read, EmulatorCaseParams, 128, 1) {
  const float v = p.y[threadIdx.x];
  p.scratch[blockIdx.x * 128 + threadIdx.x] = v;
  if (blockIdx.x == 1) p.y[threadIdx.x] = v + 1;
}

/// The block that comes last overwrites what all have read, itself last of all.
LOWRANK_KERNEL(case_last_block_overwrites, EmulatorCaseParams, 128, 1) {
  uint32_t& s_turn = *reinterpret_cast<uint32_t*>(DynamicShared<Words>().v);
  if (threadIdx.x == 0) s_turn = atomicAdd(p.counter, 1u);
  __syncthreads();
  const float v = p.y[threadIdx.x];
  p.scratch[blockIdx.x * 128 + threadIdx.x] = v;
  if (s_turn == gridDim.x - 1) p.y[threadIdx.x] = v + 1;
}

LOWRANK_KERNEL(case_atomics, EmulatorCaseParams, 128, 1) { atomicAdd(p.y + threadIdx.x, 1.0f); }

LOWRANK_KERNEL(case_atomic_and_plain, EmulatorCaseParams, 128, 1) {
  if (blockIdx.x == 0) {
    atomicAdd(p.counter, 1u);
  } else if (threadIdx.x == 0) {
    *p.counter = 5;
  }
}

/// Partial sums, and the block that comes last adds them up.
LOWRANK_KERNEL(case_last_block_reduces, EmulatorCaseParams, 128, 1) {
  uint32_t& s_turn = *reinterpret_cast<uint32_t*>(DynamicShared<Words>().v);
  p.scratch[blockIdx.x * 128 + threadIdx.x] = static_cast<float>(blockIdx.x + 1);
  __syncthreads();
  if (threadIdx.x == 0) s_turn = AtomicAddAcqRel(p.counter, 1);
  __syncthreads();
  if (s_turn != gridDim.x - 1) return;
  float sum = 0;
  for (uint32_t i = 0; i < gridDim.x; ++i) sum += p.scratch[i * 128 + threadIdx.x];
  p.y[threadIdx.x] = sum;
}

/// The same with a fence and a relaxed atomic: correct.
LOWRANK_KERNEL(case_last_block_fence, EmulatorCaseParams, 128, 1) {
  uint32_t& s_turn = *reinterpret_cast<uint32_t*>(DynamicShared<Words>().v);
  p.scratch[blockIdx.x * 128 + threadIdx.x] = static_cast<float>(blockIdx.x + 1);
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    s_turn = atomicAdd(p.counter, 1u);
    __threadfence();
  }
  __syncthreads();
  if (s_turn != gridDim.x - 1) return;
  float sum = 0;
  for (uint32_t i = 0; i < gridDim.x; ++i) sum += p.scratch[i * 128 + threadIdx.x];
  p.y[threadIdx.x] = sum;
}

/// And with nothing that releases.
LOWRANK_KERNEL(case_last_block_relaxed, EmulatorCaseParams, 128, 1) {
  uint32_t& s_turn = *reinterpret_cast<uint32_t*>(DynamicShared<Words>().v);
  p.scratch[blockIdx.x * 128 + threadIdx.x] = static_cast<float>(blockIdx.x + 1);
  __syncthreads();
  if (threadIdx.x == 0) s_turn = atomicAdd(p.counter, 1u);
  __syncthreads();
  if (s_turn != gridDim.x - 1) return;
  float sum = 0;
  for (uint32_t i = 0; i < gridDim.x; ++i) sum += p.scratch[i * 128 + threadIdx.x];
  p.y[threadIdx.x] = sum;
}

/// The barrier before the release is missing: the other warps' sums are not part of it.
LOWRANK_KERNEL(case_release_without_barrier, EmulatorCaseParams, 128, 1) {
  uint32_t& s_turn = *reinterpret_cast<uint32_t*>(DynamicShared<Words>().v);
  p.scratch[blockIdx.x * 128 + threadIdx.x] = static_cast<float>(blockIdx.x + 1);
  if (threadIdx.x == 0) s_turn = AtomicAddAcqRel(p.counter, 1);
  __syncthreads();
  if (s_turn != gridDim.x - 1) return;
  float sum = 0;
  for (uint32_t i = 0; i < gridDim.x; ++i) sum += p.scratch[i * 128 + threadIdx.x];
  p.y[threadIdx.x] = sum;
}

/// Block i waits for block i + 1: whatever the order, some block starts before the one it needs.
LOWRANK_KERNEL(case_blocks_wait_for_next, EmulatorCaseParams, 128, 1) {
  if (blockIdx.x + 1 < gridDim.x) {
    if (threadIdx.x == 0) {
      while (LoadAcquire(p.counter) != gridDim.x - 1 - blockIdx.x) {
      }
    }
    __syncthreads();
    p.y[blockIdx.x * 128 + threadIdx.x] = p.y[(blockIdx.x + 1) * 128 + threadIdx.x] + 1;
  } else {
    p.y[blockIdx.x * 128 + threadIdx.x] = 1;
  }
  __syncthreads();
  if (threadIdx.x == 0) StoreRelease(p.counter, gridDim.x - blockIdx.x);
}

/// What the other lanes of the warp wrote is no part of lane 0's release.
LOWRANK_KERNEL(case_release_without_syncwarp, EmulatorCaseParams, 128, 1) {
  if (threadIdx.x >= 32) return;
  if (blockIdx.x == 0) {
    p.scratch[threadIdx.x] = Thread();
    if (threadIdx.x == 0) StoreRelease(p.counter, 1);
  } else {
    while (LoadAcquire(p.counter) == 0) {
    }
    p.y[threadIdx.x] = p.scratch[31 - threadIdx.x];
  }
}

/// Nor is what lane 0 writes afterwards.
LOWRANK_KERNEL(case_write_after_release, EmulatorCaseParams, 128, 1) {
  if (threadIdx.x != 0) return;
  if (blockIdx.x == 0) {
    p.scratch[0] = 1;
    StoreRelease(p.counter, 1);
    p.scratch[0] = 2;
  } else {
    while (LoadAcquire(p.counter) == 0) {
    }
    p.y[0] = p.scratch[0];
  }
}

LOWRANK_KERNEL(case_release_and_acquire, EmulatorCaseParams, 128, 1) {
  if (threadIdx.x >= 32) return;
  if (blockIdx.x == 0) {
    p.scratch[threadIdx.x] = Thread();
    __syncwarp();
    if (threadIdx.x == 0) StoreRelease(p.counter, 1);
  } else {
    while (LoadAcquire(p.counter) == 0) {
    }
    p.y[threadIdx.x] = p.scratch[31 - threadIdx.x];
  }
}

LOWRANK_KERNEL(case_waits_for_ever, EmulatorCaseParams, 128, 1) {
  while (LoadAcquire(p.counter) == 0) {
  }
  p.y[threadIdx.x] = 1;
}

// ----------------------------------------------------------------------------------- async copies

LOWRANK_KERNEL(case_copy_without_wait, EmulatorCaseParams, 128, 1) {
  Copies& s = DynamicShared<Copies>();
  CpAsync16(&s.v[threadIdx.x], p.x + threadIdx.x * 4, 16);
  CpAsyncCommit();
  __syncthreads();
  p.y[threadIdx.x] = s.v[threadIdx.x].x;
  CpAsyncWait<0>();
}

LOWRANK_KERNEL(case_copy_waits_for_one_too_few, EmulatorCaseParams, 128, 1) {
  Copies& s = DynamicShared<Copies>();
  CpAsync16(&s.v[threadIdx.x], p.x + threadIdx.x * 4, 16);
  CpAsyncCommit();
  CpAsyncWait<1>();
  __syncthreads();
  p.y[threadIdx.x] = s.v[threadIdx.x].x;
  CpAsyncWait<0>();
}

/// Two groups, a wait for the first: it may be used, the second may not yet.
LOWRANK_KERNEL(case_copy_first_of_two, EmulatorCaseParams, 128, 1) {
  Copies& s = DynamicShared<Copies>();
  if (threadIdx.x < 64) CpAsync16(&s.v[threadIdx.x], p.x + threadIdx.x * 4, 16);
  CpAsyncCommit();
  if (threadIdx.x < 64) CpAsync16(&s.v[64 + threadIdx.x], p.x + threadIdx.x * 4, 16);
  CpAsyncCommit();
  CpAsyncWait<1>();
  __syncthreads();
  p.y[threadIdx.x] = s.v[threadIdx.x / 2].x;
  CpAsyncWait<0>();
  __syncthreads();
  p.y[threadIdx.x] += s.v[64 + threadIdx.x / 2].x;
}

LOWRANK_KERNEL(case_copy_second_of_two, EmulatorCaseParams, 128, 1) {
  Copies& s = DynamicShared<Copies>();
  if (threadIdx.x < 64) CpAsync16(&s.v[threadIdx.x], p.x + threadIdx.x * 4, 16);
  CpAsyncCommit();
  if (threadIdx.x < 64) CpAsync16(&s.v[64 + threadIdx.x], p.x + threadIdx.x * 4, 16);
  CpAsyncCommit();
  CpAsyncWait<1>();
  __syncthreads();
  p.y[threadIdx.x] = s.v[64 + threadIdx.x / 2].x;
  CpAsyncWait<0>();
}

LOWRANK_KERNEL(case_copy_without_barrier, EmulatorCaseParams, 128, 1) {
  Copies& s = DynamicShared<Copies>();
  CpAsync16(&s.v[threadIdx.x], p.x + threadIdx.x * 4, 16);
  CpAsyncCommit();
  CpAsyncWait<0>();
  p.y[threadIdx.x] = s.v[127 - threadIdx.x].x;
}

LOWRANK_KERNEL(case_copy_over_live_buffer, EmulatorCaseParams, 128, 1) {
  Copies& s = DynamicShared<Copies>();
  s.v[threadIdx.x] = float4{1, 2, 3, 4};
  __syncthreads();
  const float v = s.v[127 - threadIdx.x].x;
  CpAsync16(&s.v[threadIdx.x], p.x + threadIdx.x * 4, 16);
  CpAsyncCommit();
  CpAsyncWait<0>();
  __syncthreads();
  p.y[threadIdx.x] = v + s.v[threadIdx.x].x;
}

LOWRANK_KERNEL(case_copy_never_waited, EmulatorCaseParams, 128, 1) {
  Copies& s = DynamicShared<Copies>();
  CpAsync16(&s.v[threadIdx.x], p.x + threadIdx.x * 4, 16);
  CpAsyncCommit();
  p.y[threadIdx.x] = 1;
}

/// Two stages, zero fill at the ragged end.
LOWRANK_KERNEL(case_copy_pipeline, EmulatorCaseParams, 128, 1) {
  Copies& s = DynamicShared<Copies>();
  float sum = 0;
  const uint32_t thread = threadIdx.x & 63;
  const uint32_t half = threadIdx.x / 64;
  for (uint32_t step = 0; step < 3; ++step) {
    if (half == (step & 1)) {
      CpAsync16(&s.v[half * 64 + thread], p.x + thread * 4, step == 2 ? 4 : 16);
    }
    CpAsyncCommit();
    CpAsyncWait<0>();
    __syncthreads();
    const float4 v = s.v[(step & 1) * 64 + (63 - thread)];
    sum += v.x + v.y + v.z + v.w;
    __syncthreads();
  }
  p.y[threadIdx.x] = sum;
}

// ------------------------------------------------------------------------------ barriers and warps

LOWRANK_KERNEL(case_divergent_barrier, EmulatorCaseParams, 128, 1) {
  if (threadIdx.x < 64) {
    p.y[threadIdx.x] = 1;
    __syncthreads();
    p.y[threadIdx.x] += 1;
  } else {
    p.y[threadIdx.x] = 2;
    __syncthreads();
    p.y[threadIdx.x] += 3;
  }
}

LOWRANK_KERNEL(case_exit_before_barrier, EmulatorCaseParams, 128, 1) {
  if (threadIdx.x >= 64) return;
  __syncthreads();
  p.y[threadIdx.x] = 1;
}

LOWRANK_KERNEL(case_half_a_warp_multiplies, EmulatorCaseParams, 128, 1) {
  float d[4] = {0, 0, 0, 0};
  const uint32_t a[4] = {threadIdx.x, 0, 0, 0};
  if ((threadIdx.x & 31) < 16) MmaBF16(d, a, threadIdx.x, 0);
  p.y[threadIdx.x] = d[0];
}

LOWRANK_KERNEL(case_shuffle_from_outside_mask, EmulatorCaseParams, 128, 1) {
  float v = Thread();
  if ((threadIdx.x & 31) < 16) v = __shfl_xor_sync(0xffffu, v, 16);
  p.y[threadIdx.x] = v;
}

LOWRANK_KERNEL(case_shuffle_from_exited, EmulatorCaseParams, 128, 1) {
  if ((threadIdx.x & 31) >= 16) return;
  p.y[threadIdx.x] = __shfl_xor_sync(0xffffffffu, Thread(), 16);
}

LOWRANK_KERNEL(case_shuffle_waits_for_absent, EmulatorCaseParams, 128, 1) {
  float v = Thread();
  if ((threadIdx.x & 31) < 16) v = __shfl_xor_sync(0xffffffffu, v, 1);
  __syncthreads();
  p.y[threadIdx.x] = v;
}

LOWRANK_KERNEL(case_warp_reduction, EmulatorCaseParams, 128, 1) {
  Words& s = DynamicShared<Words>();
  float v = Thread();
  for (int step = 16; step > 0; step /= 2) v += __shfl_xor_sync(0xffffffffu, v, step);
  if (threadIdx.x % 32 == 0) s.v[threadIdx.x / 32] = v;
  __syncthreads();
  p.y[threadIdx.x] = s.v[0] + s.v[1] + s.v[2] + s.v[3];
}

LOWRANK_KERNEL(case_matrix_loads, EmulatorCaseParams, 128, 1) {
  Matrix& s = DynamicShared<Matrix>();
  for (uint32_t i = threadIdx.x; i < 16 * 64; i += 128) {
    s.v[i / 64][i % 64] = static_cast<uint16_t>(i);
  }
  __syncthreads();
  const uint32_t lane = threadIdx.x & 31;
  uint32_t straight[4];
  uint32_t transposed[4];
  LdMatrixX4(straight, &s.v[lane & 15][(lane >> 4) * 8]);
  LdMatrixX4Trans(transposed, &s.v[lane & 15][(lane >> 4) * 8]);
  bool right = true;
  for (uint32_t matrix = 0; matrix < 4; ++matrix) {
    const uint32_t row = matrix % 2 * 8;
    const uint32_t column = matrix / 2 * 8;
    const uint32_t at = (row + lane / 4) * 64 + column + 2 * (lane % 4);
    const uint32_t at_t = (row + 2 * (lane % 4)) * 64 + column + lane / 4;
    right = right && straight[matrix] == (at | (at + 1) << 16);
    right = right && transposed[matrix] == (at_t | (at_t + 64) << 16);
  }
  p.y[threadIdx.x] = right ? 1 : 0;
}

}  // namespace lowrank::gpu
