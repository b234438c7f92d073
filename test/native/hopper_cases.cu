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

}  // namespace lowrank::gpu
