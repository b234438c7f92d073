/// The slots of a layer of experts (RouteRowsOp): the pairs of a row and one of its experts, sorted
/// by expert and then by pair.
///
///   route_count   counts[e, b] = the pairs of expert e that block b has
///   route_scan    counts[e, b] = Σ of counts[e, b'], b' < b; offsets[e] = Σ of the experts below e
///   route_place   the pairs of block b again: slot = offsets[e] + counts[e, b] + the pairs of e in
///                 the block before this one
///
/// Pairs without an expert are those of expert E.
///
/// Operands   chosen, order, inverse [pairs], offsets [E + 1], counts [E + 1, blocks] i32
/// Grid       up to kRouteBlocks blocks, each with neighbouring pairs; route_scan one block, a warp
///            an expert
/// Shared     the experts of 256 pairs, and the next slot of each expert
/// Numerics   integers, no atomics: a pair finds its place by comparing itself with the 256 of its
///            turn. The last of an expert there writes its next slot
/// Needs      fewer than 2^31 pairs
///
/// Budget     65,536 pairs of 128 experts: 256 blocks of one turn, 64 reads of 16 bytes by
///            broadcast and 1,024 integer operations a thread, some 4,500 clk; twice, and the scan:
///            four turns of a warp, each 8 loads at once and 8 scans, about 5,000 clk. With the
///            launches 10 us.
#include "cuda/experts/expert_tiles.cuh"
#include "native/host_device/params/experts.h"

namespace lowrank::gpu {
namespace {

constexpr int kThreads = kRouteThreads;
constexpr unsigned kAllLanes = 0xffffffffu;

/// Calls place(pair, slot) for the pairs of this block, from the slots in s.next on, which it
/// moves. A barrier comes before it reads s.next.
template <typename PlaceFn>
LOWRANK_DEVICE void WalkPairs(const RouteRowsParams& p, RouteShared& s, const PlaceFn& place) {
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * p.block_pairs;
  const int64_t end = begin + p.block_pairs < p.pairs ? begin + p.block_pairs : p.pairs;
  for (int64_t first = begin; first < end; first += kThreads) {
    const int64_t pair = first + thread;
    int32_t expert = -1;  // no pair
    if (pair < end) {
      expert = p.chosen[pair];
      if (expert < 0 || expert > p.experts) expert = p.experts;
    }
    s.expert[thread] = expert;
    __syncthreads();
    int32_t before = 0;
    int32_t after = 0;
    const int4* s_experts = reinterpret_cast<const int4*>(s.expert);
#pragma unroll 4
    for (int four = 0; four < kThreads / 4; ++four) {
      const int4 others = s_experts[four];
      const int32_t other[4] = {others.x, others.y, others.z, others.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (other[i] != expert) continue;
        before += four * 4 + i < thread ? 1 : 0;
        after += four * 4 + i > thread ? 1 : 0;
      }
    }
    const int32_t slot = expert < 0 ? 0 : s.next[expert] + before;
    __syncthreads();
    if (expert < 0) continue;
    place(pair, slot);
    if (after == 0) s.next[expert] = slot + 1;
  }
}

LOWRANK_DEVICE void CountBody(const RouteRowsParams& p) {
  RouteShared& s = DynamicShared<RouteShared>();
  for (int e = static_cast<int>(threadIdx.x); e <= p.experts; e += kThreads) s.next[e] = 0;
  WalkPairs(p, s, [](int64_t, int32_t) {});
  __syncthreads();
  for (int e = static_cast<int>(threadIdx.x); e <= p.experts; e += kThreads) {
    p.counts[static_cast<int64_t>(e) * p.blocks + blockIdx.x] = s.next[e];
  }
}

LOWRANK_DEVICE void ScanBody(const RouteRowsParams& p) {
  RouteScanShared& s = DynamicShared<RouteScanShared>();
  constexpr int kWarps = kRouteScanThreads / 32;
  constexpr int kTurns = kRouteBlocks / 32;
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32;
  const int warp = thread / 32;
  s.total[thread] = 0;
  __syncthreads();
  for (int e = warp; e <= p.experts; e += kWarps) {
    int32_t* g_counts = p.counts + static_cast<int64_t>(e) * p.blocks;
    int32_t count[kTurns];
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      const int block = turn * 32 + lane;
      count[turn] = block < p.blocks ? g_counts[block] : 0;
    }
    int32_t total = 0;
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      const int32_t up_to = SumUpToLane(count[turn]);
      const int block = turn * 32 + lane;
      if (block < p.blocks) g_counts[block] = total + up_to - count[turn];
      total += __shfl_sync(kAllLanes, up_to, 31);
    }
    if (lane == 0 && e < p.experts) s.total[e] = total;
  }
  __syncthreads();
  const int32_t own = s.total[thread];
  const int32_t up_to = SumUpToLane(own);
  if (lane == 31) s.warps[warp] = up_to;
  __syncthreads();
  int32_t offset = up_to - own;
  for (int before = 0; before < warp; ++before) offset += s.warps[before];
  if (thread < p.experts) p.offsets[thread] = offset;
  if (thread == p.experts - 1) p.offsets[p.experts] = offset + own;
}

LOWRANK_DEVICE void PlaceBody(const RouteRowsParams& p) {
  RouteShared& s = DynamicShared<RouteShared>();
  for (int e = static_cast<int>(threadIdx.x); e <= p.experts; e += kThreads) {
    s.next[e] = p.offsets[e] + p.counts[static_cast<int64_t>(e) * p.blocks + blockIdx.x];
  }
  WalkPairs(p, s, [&](int64_t pair, int32_t slot) {
    p.order[slot] = static_cast<int32_t>(pair);
    p.inverse[pair] = slot;
  });
}

}  // namespace

LOWRANK_KERNEL(route_count_kernel, RouteRowsParams, kThreads, 4) { CountBody(p); }
LOWRANK_KERNEL(route_scan_kernel, RouteRowsParams, kRouteScanThreads, 1) { ScanBody(p); }
LOWRANK_KERNEL(route_place_kernel, RouteRowsParams, kThreads, 4) { PlaceBody(p); }

}  // namespace lowrank::gpu
