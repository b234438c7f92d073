/// Kernels of sm_90a with one planted bug each, and correct ones beside them, every access of which
/// is reported: what the checks of registers, scopes, launches that overlap and rings must find,
/// and must not. 128 threads a block.
#include "cuda/ptx_sm90.cuh"
#include "test/native/hopper_cases.h"

namespace lowrank::gpu {
namespace {

/// Rows of 128 bytes as the copy engine's swizzle leaves them, all of them one value.
struct Operands {
  alignas(1024) uint16_t a[64 * 64];
  alignas(1024) uint16_t b[128 * 64];
};
constexpr uint32_t kOnes = 0x3f803f80;  // two bf16

LOWRANK_DEVICE void FillOnes(Operands& s) {
  for (uint32_t i = threadIdx.x; i < 64 * 64; i += 128) s.a[i] = 0x3f80;
  for (uint32_t i = threadIdx.x; i < 128 * 64; i += 128) s.b[i] = 0x3f80;
  FenceProxyAsyncShared();
  __syncthreads();
}

LOWRANK_DEVICE void SetFragment(uint32_t (&a)[4], uint32_t word) {
  for (uint32_t& part : a) part = word;
}

}  // namespace

// ------------------------------------------------------------------------------ registers of wgmma

/// Two products into the same accumulators need one fence, and an access after the wait none.
LOWRANK_EARLY_KERNEL(case_accumulators, HopperCaseParams, 128, 1) {
  Operands& s = DynamicShared<Operands>();
  FillOnes(s);
  float d[64];
  for (float& sum : d) sum = 1;
  WgmmaFence();
  WgmmaBF16(d, WgmmaDescriptor(s.a), WgmmaDescriptor(s.b), 1);
  WgmmaBF16(d, WgmmaDescriptor(s.a), WgmmaDescriptor(s.b), 1);
  WgmmaCommit();
  WgmmaWait<0>();
  p.y[threadIdx.x] = d[5];
}

/// The first fence is there; the accumulators are written again, and none follows.
LOWRANK_EARLY_KERNEL(case_accumulators_written_after_fence, HopperCaseParams, 128, 1) {
  Operands& s = DynamicShared<Operands>();
  FillOnes(s);
  float d[2][64] = {};
  WgmmaFence();
  WgmmaBF16(d[0], WgmmaDescriptor(s.a), WgmmaDescriptor(s.b), 1);
  WgmmaCommit();
  d[1][threadIdx.x % 64] = 2;
  WgmmaBF16(d[1], WgmmaDescriptor(s.a), WgmmaDescriptor(s.b), 1);
  WgmmaCommit();
  WgmmaWait<0>();
  p.y[threadIdx.x] = d[0][5] + d[1][5];
}

/// Sums that were read are accumulated into while other products fly: a fence is needed for these
/// reads too.
LOWRANK_EARLY_KERNEL(case_accumulators_read_after_fence, HopperCaseParams, 128, 1) {
  Operands& s = DynamicShared<Operands>();
  FillOnes(s);
  float d[2][64] = {};
  WgmmaFence();
  WgmmaBF16(d[0], WgmmaDescriptor(s.a), WgmmaDescriptor(s.b), 1);
  WgmmaCommit();
  WgmmaBF16(d[1], WgmmaDescriptor(s.a), WgmmaDescriptor(s.b), 1);
  WgmmaCommit();
  WgmmaWait<1>();
  p.y[threadIdx.x] = d[0][5];
  WgmmaBF16(d[0], WgmmaDescriptor(s.a), WgmmaDescriptor(s.b), 1);
  WgmmaCommit();
  WgmmaWait<0>();
  p.y[threadIdx.x] += d[0][6] + d[1][6];
}

/// The same with the fence.
LOWRANK_EARLY_KERNEL(case_accumulators_fenced_again, HopperCaseParams, 128, 1) {
  Operands& s = DynamicShared<Operands>();
  FillOnes(s);
  float d[2][64] = {};
  WgmmaFence();
  WgmmaBF16(d[0], WgmmaDescriptor(s.a), WgmmaDescriptor(s.b), 1);
  WgmmaCommit();
  WgmmaBF16(d[1], WgmmaDescriptor(s.a), WgmmaDescriptor(s.b), 1);
  WgmmaCommit();
  WgmmaWait<1>();
  p.y[threadIdx.x] = d[0][5];
  WgmmaFence();
  WgmmaBF16(d[0], WgmmaDescriptor(s.a), WgmmaDescriptor(s.b), 1);
  WgmmaCommit();
  WgmmaWait<0>();
  p.y[threadIdx.x] += d[0][6] + d[1][6];
}

/// A sum is read before the wait.
LOWRANK_EARLY_KERNEL(case_accumulator_read_in_flight, HopperCaseParams, 128, 1) {
  Operands& s = DynamicShared<Operands>();
  FillOnes(s);
  float d[64] = {};
  WgmmaFence();
  WgmmaBF16(d, WgmmaDescriptor(s.a), WgmmaDescriptor(s.b), 1);
  WgmmaCommit();
  p.y[threadIdx.x] = d[3];
  WgmmaWait<0>();
}

/// Fragments of a, two groups in turn: each is written only when its products are done.
LOWRANK_EARLY_KERNEL(case_fragments, HopperCaseParams, 128, 1) {
  Operands& s = DynamicShared<Operands>();
  FillOnes(s);
  float d[64] = {};
  uint32_t a[2][4];
  for (uint32_t i = 0; i < 4; ++i) {
    SetFragment(a[i % 2], kOnes);
    WgmmaFence();
    WgmmaBF16(d, a[i % 2], WgmmaDescriptor(s.b));
    WgmmaCommit();
    WgmmaWait<1>();
  }
  WgmmaWait<0>();
  p.y[threadIdx.x] = d[0];
}

/// One group of fragments, overwritten while its products may still read it.
LOWRANK_EARLY_KERNEL(case_fragment_overwritten, HopperCaseParams, 128, 1) {
  Operands& s = DynamicShared<Operands>();
  FillOnes(s);
  float d[64] = {};
  uint32_t a[4];
  for (uint32_t i = 0; i < 4; ++i) {
    SetFragment(a, kOnes + i);
    WgmmaFence();
    WgmmaBF16(d, a, WgmmaDescriptor(s.b));
    WgmmaCommit();
    WgmmaWait<1>();
  }
  WgmmaWait<0>();
  p.y[threadIdx.x] = d[0];
}

/// Fragments written after the last fence.
LOWRANK_EARLY_KERNEL(case_fragment_not_fenced, HopperCaseParams, 128, 1) {
  Operands& s = DynamicShared<Operands>();
  FillOnes(s);
  float d[64] = {};
  uint32_t a[2][4];
  SetFragment(a[0], kOnes);
  WgmmaFence();
  WgmmaBF16(d, a[0], WgmmaDescriptor(s.b));
  WgmmaCommit();
  SetFragment(a[1], kOnes);
  WgmmaBF16(d, a[1], WgmmaDescriptor(s.b));
  WgmmaCommit();
  WgmmaWait<0>();
  p.y[threadIdx.x] = d[0];
}

// ------------------------------------------------------------------------------------------ scopes
//
// Block 1 writes its part of y and says so, block 0 waits for it and copies.

LOWRANK_EARLY_KERNEL(case_scope_of_device, HopperCaseParams, 128, 1) {
  if (blockIdx.x == 1) {
    p.y[128 + threadIdx.x] = 7;
    __syncthreads();
    if (threadIdx.x == 0) StoreRelease(p.counter, 1);
    return;
  }
  while (LoadAcquire(p.counter) == 0) {
  }
  p.y[threadIdx.x] = p.y[128 + threadIdx.x];
}

LOWRANK_EARLY_KERNEL(case_release_at_block, HopperCaseParams, 128, 1) {
  if (blockIdx.x == 1) {
    p.y[128 + threadIdx.x] = 7;
    __syncthreads();
    if (threadIdx.x == 0) {
      emu::StoreRelease(p.counter, 1, emu::Site::Line(__FILE__, __LINE__), emu::Scope::kBlock);
    }
    return;
  }
  while (LoadAcquire(p.counter) == 0) {
  }
  p.y[threadIdx.x] = p.y[128 + threadIdx.x];
}

LOWRANK_EARLY_KERNEL(case_acquire_at_cluster, HopperCaseParams, 128, 1) {
  if (blockIdx.x == 1) {
    p.y[128 + threadIdx.x] = 7;
    __syncthreads();
    if (threadIdx.x == 0) StoreRelease(p.counter, 1);
    return;
  }
  while (emu::LoadAcquire(p.counter, emu::Site::Line(__FILE__, __LINE__), emu::Scope::kCluster) ==
         0) {
  }
  p.y[threadIdx.x] = p.y[128 + threadIdx.x];
}

LOWRANK_EARLY_KERNEL(case_fence_of_device, HopperCaseParams, 128, 1) {
  if (blockIdx.x == 1) {
    p.y[128 + threadIdx.x] = 7;
    __syncthreads();
    __threadfence();
    __threadfence_block();
    if (threadIdx.x == 0) atomicAdd(p.counter, 1u);
    return;
  }
  while (LoadAcquire(p.counter) == 0) {
  }
  p.y[threadIdx.x] = p.y[128 + threadIdx.x];
}

LOWRANK_EARLY_KERNEL(case_fence_of_block, HopperCaseParams, 128, 1) {
  if (blockIdx.x == 1) {
    p.y[128 + threadIdx.x] = 7;
    __syncthreads();
    __threadfence_block();
    if (threadIdx.x == 0) atomicAdd(p.counter, 1u);
    return;
  }
  while (LoadAcquire(p.counter) == 0) {
  }
  p.y[threadIdx.x] = p.y[128 + threadIdx.x];
}

/// The fence of the device stands before the write.
LOWRANK_EARLY_KERNEL(case_fence_of_block_after_one_of_device, HopperCaseParams, 128, 1) {
  if (blockIdx.x == 1) {
    __threadfence();
    p.y[128 + threadIdx.x] = 7;
    __syncthreads();
    __threadfence_block();
    if (threadIdx.x == 0) atomicAdd(p.counter, 1u);
    return;
  }
  while (LoadAcquire(p.counter) == 0) {
  }
  p.y[threadIdx.x] = p.y[128 + threadIdx.x];
}

/// Two blocks count in one word, each for itself.
LOWRANK_EARLY_KERNEL(case_atomics_of_block, HopperCaseParams, 128, 1) {
  if (threadIdx.x == 0)
    AtomicAddAcqRel(p.counter, 1, emu::Site::Line(__FILE__, __LINE__), emu::Scope::kBlock);
  p.y[blockIdx.x * 128 + threadIdx.x] = 7;
}

struct PeerBarrier {
  uint64_t barrier;
};
/// Each block of a pair writes and arrives at the other's barrier at `arrive`, and waits at `wait`
/// for what the other wrote.
LOWRANK_DEVICE void CopyOfPeer(const HopperCaseParams& p, emu::Scope arrive, emu::Scope wait) {
  PeerBarrier& s = DynamicShared<PeerBarrier>();
  const uint32_t rank = ClusterRank();
  float* g_own = p.y + (rank + 2) * 128;
  if (threadIdx.x == 0) {
    BarrierInit(&s.barrier, 1);
    FenceBarrierInit();
  }
  g_own[threadIdx.x] = 7;
  ClusterSync();
  g_own[threadIdx.x] += 1;
  __syncthreads();
  const emu::Site site = emu::Site::Line(__FILE__, __LINE__);
  const uint32_t barrier = SharedAddress(&s.barrier);
  if (threadIdx.x == 0) {
    emu::MbarrierArrive(emu::MapAddress(barrier, rank ^ 1, site), 1, site, arrive);
  }
  emu::MbarrierTryWaitParity(barrier, 0, site, wait);
  p.y[rank * 128 + threadIdx.x] = p.y[(3 - rank) * 128 + threadIdx.x];
  ClusterSync();
}
LOWRANK_EARLY_KERNEL(case_arrival_of_cluster, HopperCaseParams, 128, 1) {
  CopyOfPeer(p, emu::Scope::kCluster, emu::Scope::kCluster);
}
LOWRANK_EARLY_KERNEL(case_arrival_of_block, HopperCaseParams, 128, 1) {
  CopyOfPeer(p, emu::Scope::kBlock, emu::Scope::kCluster);
}
LOWRANK_EARLY_KERNEL(case_arrival_relaxed, HopperCaseParams, 128, 1) {
  CopyOfPeer(p, emu::Scope::kNone, emu::Scope::kCluster);
}
LOWRANK_EARLY_KERNEL(case_wait_of_block, HopperCaseParams, 128, 1) {
  CopyOfPeer(p, emu::Scope::kCluster, emu::Scope::kBlock);
}

// ------------------------------------------------------------------------------ loads that are
// cached

LOWRANK_KERNEL(case_fill_x, HopperCaseParams, 128, 1) { p.x[threadIdx.x] = 3; }

LOWRANK_EARLY_KERNEL(case_plain_load, HopperCaseParams, 128, 1) {
  GridDependencyWait();
  p.y[threadIdx.x] = p.x[threadIdx.x];
}

/// The launch before may have been running when this one began, and its data may be cached as it
/// was.
LOWRANK_EARLY_KERNEL(case_non_coherent_load, HopperCaseParams, 128, 1) {
  GridDependencyWait();
  p.y[threadIdx.x] = __ldg(p.x + threadIdx.x);
}

LOWRANK_EARLY_KERNEL(case_non_coherent_load_of_own, HopperCaseParams, 128, 1) {
  p.y[threadIdx.x] = 1;
  __syncthreads();
  p.y[threadIdx.x] += __ldg(p.y + threadIdx.x);
}

// ------------------------------------------------------------------------------------------- rings

struct Ring {
  float slots[2][128];
};
/// Four turns through two slots, each read after a barrier; turn `from` reads the slot of another.
LOWRANK_DEVICE void GoRound(const HopperCaseParams& p, uint32_t from, int apart) {
  Ring& s = DynamicShared<Ring>();
  float sum = 0;
  for (uint32_t turn = 0; turn < 4; ++turn) {
    s.slots[turn % 2][threadIdx.x] = static_cast<float>(turn);
    SlotFilled(s.slots[turn % 2], turn);
    __syncthreads();
    const uint32_t slot = (turn == from ? turn + static_cast<uint32_t>(apart) : turn) % 2;
    SlotRead(s.slots[slot], turn);
    sum += s.slots[slot][127 - threadIdx.x];
    __syncthreads();
  }
  p.y[threadIdx.x] = sum;
}
LOWRANK_EARLY_KERNEL(case_ring, HopperCaseParams, 128, 1) { GoRound(p, 9, 0); }
LOWRANK_EARLY_KERNEL(case_ring_read_of_last_turn, HopperCaseParams, 128, 1) { GoRound(p, 2, 1); }
LOWRANK_EARLY_KERNEL(case_ring_read_of_nothing, HopperCaseParams, 128, 1) {
  Ring& s = DynamicShared<Ring>();
  s.slots[0][threadIdx.x] = 1;
  __syncthreads();
  SlotRead(s.slots[0], 0);
  p.y[threadIdx.x] = s.slots[0][127 - threadIdx.x];
}

}  // namespace lowrank::gpu
