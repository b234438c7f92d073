/// The sm_90a instructions of the emulator, one function each, called by source mode
/// (ptx_sm90_emulated.h) and by translated PTX alike. `site` is the instruction's place in the
/// program, as everywhere in the emulator.
///
/// Shared addresses are 32-bit, in the shared::cluster window: an offset below 2^24 is the
/// executing block's own shared memory (so SharedAddress() gives one), and (rank + 1) << 24 |
/// offset is that of the block with this rank in the cluster.
///
///   mbarrier.init.shared::cta.b64                      MbarrierInit
///   mbarrier.inval                                     MbarrierInvalidate
///   mbarrier.arrive[.release.cta|.cluster] [, count]   MbarrierArrive (own or a peer's barrier)
///   mbarrier.arrive.expect_tx                          MbarrierArriveExpectTx
///   mbarrier.expect_tx                                 MbarrierExpectTx
///   mbarrier.test_wait / try_wait [.parity]            MbarrierTestWait..., MbarrierTryWait...
///   fence.mbarrier_init.release.cluster                FenceMbarrierInit
///   fence.proxy.async[.shared::cta|.global]            FenceProxyAsync
///   cp.async.bulk.shared::cluster.global               BulkLoad (multicast 0: none)
///   cp.async.bulk.shared::cluster.shared::cta          BulkCopyToPeer
///   cp.async.bulk.global.shared::cta.bulk_group        BulkStore
///   cp.async.bulk.tensor.{1..5}d.shared::cluster.global.tile[.multicast]   TensorLoad
///   cp.async.bulk.tensor.{1..5}d.global.shared::cta.tile.bulk_group        TensorStore
///   prefetch.tensormap                                 TensorPrefetch
///   cp.async.bulk.commit_group                         BulkCommitGroup
///   cp.async.bulk.wait_group[.read] n                  BulkWaitGroup
///   wgmma.fence / commit_group / wait_group n          WgmmaFence, WgmmaCommit, WgmmaWait
///   wgmma.mma_async.m64nNk16.f32.{bf16,f16}            Wgmma, WgmmaRegisters
///   wgmma.mma_async.m64nNk32.s32.s8.u8                 Wgmma
///   stmatrix.m8n8.x{1,2,4}[.trans].b16                 StMatrix (runtime.h)
///   mapa.shared::cluster.u32 / mapa.u64                MapAddress, MapGeneric
///   ld.shared::cluster / st.shared::cluster            ClusterLoad, ClusterStore
///   barrier.cluster.arrive[.relaxed] / wait            ClusterArrive, ClusterWait (runtime.h)
///   %cluster_ctarank, %cluster_nctarank                ClusterRank, ClusterSize
///   setmaxnreg.{inc,dec}                               SetMaxRegisters
///   griddepcontrol.wait                                GridDependencyWait (runtime.h)
///   griddepcontrol.launch_dependents                   nothing: launches do not overlap here
///   elect.sync                                         ElectOne
#pragma once

#include <array>
#include <cstdint>

#include "cuda/emulator/runtime.h"

namespace lowrank::emu {

// mbarrier. A phase completes when the pending arrivals and the pending bytes are both 0.
void MbarrierInit(uint32_t barrier, uint32_t count, Site site);
void MbarrierInvalidate(uint32_t barrier, Site site);
/// Returns the state of the phase it arrives in (meaningless for a peer's barrier).
/// An arrival releases, a wait acquires, at this scope: that of the block where none is named.
uint64_t MbarrierArrive(uint32_t barrier, uint32_t count, Site site, Scope scope = Scope::kBlock);
uint64_t MbarrierArriveExpectTx(uint32_t barrier, uint32_t bytes, Site site,
                                Scope scope = Scope::kBlock);
void MbarrierExpectTx(uint32_t barrier, uint32_t bytes, Site site);
/// True when the phase of `state`, or of this parity, has completed. `Try` blocks the lane until
/// then, so a loop around it turns once and a deadlock is found exactly; `Test` lets others run.
bool MbarrierTestWait(uint32_t barrier, uint64_t state, Site site, Scope scope = Scope::kBlock);
bool MbarrierTryWait(uint32_t barrier, uint64_t state, Site site, Scope scope = Scope::kBlock);
bool MbarrierTestWaitParity(uint32_t barrier, uint32_t parity, Site site,
                            Scope scope = Scope::kBlock);
bool MbarrierTryWaitParity(uint32_t barrier, uint32_t parity, Site site,
                           Scope scope = Scope::kBlock);
void FenceMbarrierInit(Site site);

/// Orders this thread's ordinary accesses before later ones of the copy and matrix engines.
void FenceProxyAsync(Site site);

// Bulk copies: sizes and addresses are multiples of 16 bytes. With a multicast mask the data and
// the bytes on the barrier go to the same offsets in every block of the mask.
void BulkLoad(uint32_t s_dst, const void* g_src, uint32_t bytes, uint32_t barrier,
              uint32_t multicast, Site site);
void BulkCopyToPeer(uint32_t s_dst, uint32_t s_src, uint32_t bytes, uint32_t barrier, Site site);
void BulkStore(void* g_dst, uint32_t s_src, uint32_t bytes, Site site);
void BulkCommitGroup(Site site);
/// Until at most `pending` groups of this thread are unfinished, or with `read` until their
/// sources may be overwritten.
void BulkWaitGroup(uint32_t pending, bool read, Site site);

// Tensor tiles. `map` is what EncodeTensorMap() made, coordinate 0 is the contiguous one.
void TensorLoad(uint32_t s_dst, const void* map, uint32_t rank, const int32_t* coordinates,
                uint32_t barrier, uint32_t multicast, Site site);
void TensorStore(const void* map, uint32_t rank, const int32_t* coordinates, uint32_t s_src,
                 Site site);
void TensorPrefetch(const void* map, Site site);

/// What cuTensorMapEncodeTiled is given; the emulated driver calls EncodeTensorMap with it.
struct TensorMapSpec {
  uint64_t base = 0;
  uint32_t rank = 0;              // 1..5
  uint32_t elem_bytes = 0;        // 1, 2, 4, 8
  uint64_t size_elems[5] = {};    // [0] is contiguous
  uint64_t stride_bytes[5] = {};  // of dimension i, [0] unused
  uint32_t box_elems[5] = {};
  uint32_t elem_stride[5] = {};  // of the traversal; only 1 is modelled
  uint32_t swizzle_bytes = 0;    // 0, 32, 64, 128
};
/// Fills the 128 bytes at `map`. Null, or why the real driver would refuse the arguments.
const char* EncodeTensorMap(const TensorMapSpec& spec, void* map);

// wgmma. All 128 threads of a warpgroup execute each of these; every warp computes its 16 rows.
struct WgmmaShape {
  uint32_t n = 0;           // 8..256, a multiple of 8
  bool bf16 = true;         // false: f16
  bool s8u8 = false;        // bytes, a signed and b unsigned: k is 32, d s32, K-major, from SS
  bool a_mn_major = false;  // imm-trans-a
  bool b_mn_major = false;  // imm-trans-b
  bool negate_a = false;    // imm-scale-a == -1
  bool negate_b = false;
};
void WgmmaFence(Site site);
void WgmmaCommit(Site site);
void WgmmaWait(uint32_t pending, Site site);
/// d [64, n] (+)= a [64, k] · b [k, n]; d holds the thread's n / 2 accumulators. By default the
/// sums appear in d at the latest moment allowed (WgmmaWait), or at once with early copies;
/// `at_issue` (for translated PTX, whose registers move) always computes at once, and WgmmaWait
/// then checks that the operands stood still.
void Wgmma(const WgmmaShape& shape, void* d, uint64_t desc_a, uint64_t desc_b, bool accumulate,
           bool at_issue, Site site);
/// a [64, 16] from each thread's four registers, variables that live until the wait and stay as
/// they are: they are read when the sums are computed.
using WgmmaFragment = std::array<const uint32_t*, 4>;
void WgmmaRegisters(const WgmmaShape& shape, float* d, const WgmmaFragment& a, uint64_t desc_b,
                    bool accumulate, bool at_issue, Site site);

// Clusters.
uint32_t ClusterRank();
uint32_t ClusterSize();
uint32_t MapAddress(uint32_t s_address, uint32_t rank, Site site);
const void* MapGeneric(const void* s_pointer, uint32_t rank, Site site);
void ClusterLoad(uint32_t s_address, void* value, uint32_t bytes, Site site);
void ClusterStore(uint32_t s_address, const void* value, uint32_t bytes, Site site);
void SetMaxRegisters(uint32_t count, bool increase, Site site);
/// True in one lane of the mask.
bool ElectOne(uint32_t mask, Site site);

}  // namespace lowrank::emu
