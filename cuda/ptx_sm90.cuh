/// The sm_90a instructions of the Hopper kernels, one wrapper each; the emulated twins are in
/// cuda/emulator/hopper/ptx_sm90_emulated.h. Files named *_sm90a.cu are compiled only for sm_90a.
#pragma once

#include "cuda/gpu.cuh"
#include "native/host_device/params/parts/tensor_map.h"

#if !defined(__CUDACC__)

#include "cuda/emulator/hopper/ptx_sm90_emulated.h"

#else

namespace lowrank::gpu {

// clang-format off

/// A transaction barrier in shared memory: its phase completes when `count` arrivals and all
/// expected bytes have arrived.
LOWRANK_PTX void BarrierInit(uint64_t* s_barrier, uint32_t count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;"
               :: "r"(SharedAddress(s_barrier)), "r"(count) : "memory");
}
/// After BarrierInit and before a cluster barrier: makes the barriers visible to the copy engine
/// and to the peers.
LOWRANK_PTX void FenceBarrierInit() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
/// One arrival that also announces `bytes` of asynchronous copies.
LOWRANK_PTX void BarrierArriveExpectBytes(uint64_t* s_barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
               :: "r"(SharedAddress(s_barrier)), "r"(bytes) : "memory");
}
/// One arrival.
LOWRANK_PTX void BarrierArrive(uint64_t* s_barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];"
               :: "r"(SharedAddress(s_barrier)) : "memory");
}
/// One arrival on the barrier at the same place in the block with this rank in the cluster.
LOWRANK_PTX void BarrierArriveAt(uint64_t* s_barrier, uint32_t rank) {
  uint32_t address;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
               : "=r"(address) : "r"(SharedAddress(s_barrier)), "r"(rank));
  asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];"
               :: "r"(address) : "memory");
}
/// Waits until the phase of this parity has completed. On a fresh barrier, parity 1 has completed.
LOWRANK_PTX void BarrierWait(uint64_t* s_barrier, uint32_t parity) {
  uint32_t done;
  do {
    asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;"
                 "selp.u32 %0, 1, 0, p; }"
                 : "=r"(done) : "r"(SharedAddress(s_barrier)), "r"(parity) : "memory");
  } while (done == 0);
}

/// Makes ordinary writes to global memory that this thread has seen, including acquired ones of
/// other threads, visible to its later copies.
LOWRANK_PTX void FenceProxyAsyncGlobal() { asm volatile("fence.proxy.async.global;" ::: "memory"); }

/// One box of a tensor, coordinates in elements (x is contiguous), to shared memory. Elements
/// outside the tensor are zero, and count as bytes like the others.
LOWRANK_PTX void TensorLoad2D(void* s_dst, const TensorMap* map, int32_t x, int32_t y,
                              uint64_t* s_barrier) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
               "[%0], [%1, {%3, %4}], [%2];"
               :: "r"(SharedAddress(s_dst)), "l"(map), "r"(SharedAddress(s_barrier)), "r"(x), "r"(y)
               : "memory");
}
/// The same, to the same place in every block of the mask; each block's barrier counts its bytes.
LOWRANK_PTX void TensorLoad2DMulticast(void* s_dst, const TensorMap* map, int32_t x, int32_t y,
                                       uint64_t* s_barrier, uint16_t ranks) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
               ".multicast::cluster [%0], [%1, {%3, %4}], [%2], %5;"
               :: "r"(SharedAddress(s_dst)), "l"(map), "r"(SharedAddress(s_barrier)), "r"(x), "r"(y),
                  "h"(ranks)
               : "memory");
}
LOWRANK_PTX void PrefetchTensorMap(const TensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" :: "l"(map) : "memory");
}

/// Before a barrier after which products read what this thread has stored in shared memory.
LOWRANK_PTX void FenceProxyAsyncShared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
/// Before the first product that touches registers written by ordinary instructions.
LOWRANK_PTX void WgmmaFence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
LOWRANK_PTX void WgmmaCommit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
/// Waits until at most kPending groups of products are in flight.
template <int kPending>
LOWRANK_PTX void WgmmaWait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" :: "n"(kPending) : "memory");
}
/// Rows of 128 bytes, eight of them 1,024 bytes, the 16-byte chunks of row i xored with i % 8:
/// what TMA's 128-byte swizzle writes. Advance by 16 elements of K (32 bytes) is + 2 here.
LOWRANK_PTX uint64_t WgmmaDescriptor(const void* s_tile) {
  return static_cast<uint64_t>((SharedAddress(s_tile) & 0x3ffffu) >> 4) | uint64_t{1} << 16 |
         uint64_t{1024 >> 4} << 32 | uint64_t{1} << 62;
}

#define LOWRANK_ACC4(d, i) "+f"(d[i]), "+f"(d[(i) + 1]), "+f"(d[(i) + 2]), "+f"(d[(i) + 3])
#define LOWRANK_ACC16(d, i) \
  LOWRANK_ACC4(d, i), LOWRANK_ACC4(d, (i) + 4), LOWRANK_ACC4(d, (i) + 8), LOWRANK_ACC4(d, (i) + 12)

#define LOWRANK_SUM4(d, i) "+r"(d[i]), "+r"(d[(i) + 1]), "+r"(d[(i) + 2]), "+r"(d[(i) + 3])
#define LOWRANK_SUM16(d, i) \
  LOWRANK_SUM4(d, i), LOWRANK_SUM4(d, (i) + 4), LOWRANK_SUM4(d, (i) + 8), LOWRANK_SUM4(d, (i) + 12)

/// d [64, n] = a [64, 16] · b [n, 16]ᵀ, plus d where `accumulate`; both operands in shared memory,
/// K-major. Warp i of the warpgroup holds rows 16 i ..; with g = lane / 4 and t = lane % 4:
///   d[4 j] (g, 8 j + 2 t), d[4 j + 1] (g, 8 j + 2 t + 1), d[4 j + 2], d[4 j + 3] the same at g + 8
LOWRANK_PTX void WgmmaBF16(float (&d)[64], uint64_t a, uint64_t b, uint32_t accumulate) {
  asm volatile("{ .reg .pred p; setp.ne.b32 p, %66, 0;"
               "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
               "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
               "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
               "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"
               "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
               "}, %64, %65, p, 1, 1, 0, 0; }"
               : LOWRANK_ACC16(d, 0), LOWRANK_ACC16(d, 16), LOWRANK_ACC16(d, 32), LOWRANK_ACC16(d, 48)
               : "l"(a), "l"(b), "r"(accumulate));
}
LOWRANK_PTX void WgmmaF16(float (&d)[64], uint64_t a, uint64_t b, uint32_t accumulate) {
  asm volatile("{ .reg .pred p; setp.ne.b32 p, %66, 0;"
               "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {"
               "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
               "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
               "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"
               "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
               "}, %64, %65, p, 1, 1, 0, 0; }"
               : LOWRANK_ACC16(d, 0), LOWRANK_ACC16(d, 16), LOWRANK_ACC16(d, 32), LOWRANK_ACC16(d, 48)
               : "l"(a), "l"(b), "r"(accumulate));
}
LOWRANK_PTX void WgmmaBF16(float (&d)[128], uint64_t a, uint64_t b, uint32_t accumulate) {
  asm volatile("{ .reg .pred p; setp.ne.b32 p, %130, 0;"
               "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
               "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
               "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
               "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"
               "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63,"
               "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,"
               "%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,"
               "%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,"
               "%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"
               "}, %128, %129, p, 1, 1, 0, 0; }"
               : LOWRANK_ACC16(d, 0), LOWRANK_ACC16(d, 16), LOWRANK_ACC16(d, 32), LOWRANK_ACC16(d, 48), LOWRANK_ACC16(d, 64), LOWRANK_ACC16(d, 80), LOWRANK_ACC16(d, 96), LOWRANK_ACC16(d, 112)
               : "l"(a), "l"(b), "r"(accumulate));
}
LOWRANK_PTX void WgmmaF16(float (&d)[128], uint64_t a, uint64_t b, uint32_t accumulate) {
  asm volatile("{ .reg .pred p; setp.ne.b32 p, %130, 0;"
               "wgmma.mma_async.sync.aligned.m64n256k16.f32.f16.f16 {"
               "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
               "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
               "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"
               "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63,"
               "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,"
               "%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,"
               "%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,"
               "%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"
               "}, %128, %129, p, 1, 1, 0, 0; }"
               : LOWRANK_ACC16(d, 0), LOWRANK_ACC16(d, 16), LOWRANK_ACC16(d, 32), LOWRANK_ACC16(d, 48), LOWRANK_ACC16(d, 64), LOWRANK_ACC16(d, 80), LOWRANK_ACC16(d, 96), LOWRANK_ACC16(d, 112)
               : "l"(a), "l"(b), "r"(accumulate));
}

/// The same for bytes, 32 of K, a signed and b unsigned: sums of 32 bits, which wrap.
LOWRANK_PTX void WgmmaS8U8(int32_t (&d)[128], uint64_t a, uint64_t b, uint32_t accumulate) {
  asm volatile("{ .reg .pred p; setp.ne.b32 p, %130, 0;"
               "wgmma.mma_async.sync.aligned.m64n256k32.s32.s8.u8 {"
               "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
               "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
               "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"
               "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63,"
               "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,"
               "%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,"
               "%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,"
               "%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"
               "}, %128, %129, p; }"
               : LOWRANK_SUM16(d, 0), LOWRANK_SUM16(d, 16), LOWRANK_SUM16(d, 32), LOWRANK_SUM16(d, 48), LOWRANK_SUM16(d, 64), LOWRANK_SUM16(d, 80), LOWRANK_SUM16(d, 96), LOWRANK_SUM16(d, 112)
               : "l"(a), "l"(b), "r"(accumulate));
}

/// d += a · bᵀ with a in registers, as MmaBF16 holds it: warp i of the warpgroup has rows 16 i ..
LOWRANK_PTX void WgmmaBF16(float (&d)[32], const uint32_t (&a)[4], uint64_t b) {
  asm volatile("{ .reg .pred p; setp.eq.u32 p, 0, 0;"
               "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
               "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
               "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
               "}, {%32,%33,%34,%35}, %36, p, 1, 1, 0; }"
               : LOWRANK_ACC16(d, 0), LOWRANK_ACC16(d, 16)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
LOWRANK_PTX void WgmmaF16(float (&d)[32], const uint32_t (&a)[4], uint64_t b) {
  asm volatile("{ .reg .pred p; setp.eq.u32 p, 0, 0;"
               "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {"
               "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
               "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
               "}, {%32,%33,%34,%35}, %36, p, 1, 1, 0; }"
               : LOWRANK_ACC16(d, 0), LOWRANK_ACC16(d, 16)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
LOWRANK_PTX void WgmmaBF16(float (&d)[64], const uint32_t (&a)[4], uint64_t b) {
  asm volatile("{ .reg .pred p; setp.eq.u32 p, 0, 0;"
               "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
               "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
               "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
               "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"
               "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
               "}, {%64,%65,%66,%67}, %68, p, 1, 1, 0; }"
               : LOWRANK_ACC16(d, 0), LOWRANK_ACC16(d, 16), LOWRANK_ACC16(d, 32), LOWRANK_ACC16(d, 48)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
LOWRANK_PTX void WgmmaF16(float (&d)[64], const uint32_t (&a)[4], uint64_t b) {
  asm volatile("{ .reg .pred p; setp.eq.u32 p, 0, 0;"
               "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {"
               "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
               "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
               "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"
               "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
               "}, {%64,%65,%66,%67}, %68, p, 1, 1, 0; }"
               : LOWRANK_ACC16(d, 0), LOWRANK_ACC16(d, 16), LOWRANK_ACC16(d, 32), LOWRANK_ACC16(d, 48)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

#undef LOWRANK_SUM16
#undef LOWRANK_SUM4
#undef LOWRANK_ACC16
#undef LOWRANK_ACC4

/// Four 8 x 8 matrices of 16-bit elements, LdMatrixX4's inverse.
LOWRANK_PTX void StMatrixX4(void* s_row, const uint32_t (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};"
               :: "r"(SharedAddress(s_row)), "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3]) : "memory");
}

/// Registers of each thread of this warpgroup, from a pool that the block shares.
template <int kCount>
LOWRANK_PTX void RegistersUpTo() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" :: "n"(kCount));
}
template <int kCount>
LOWRANK_PTX void RegistersDownTo() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" :: "n"(kCount));
}

LOWRANK_PTX uint32_t ClusterRank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
/// The four floats at the same place in the block with this rank.
LOWRANK_PTX float4 LoadFromPeer(const float4* s_value, uint32_t rank) {
  uint32_t address;
  float4 value;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
               : "=r"(address) : "r"(SharedAddress(s_value)), "r"(rank));
  asm volatile("ld.shared::cluster.v4.f32 {%0,%1,%2,%3}, [%4];"
               : "=f"(value.x), "=f"(value.y), "=f"(value.z), "=f"(value.w)
               : "r"(address) : "memory");
  return value;
}
/// Waits for every thread of every block of the cluster.
LOWRANK_PTX void ClusterSync() {
  asm volatile("barrier.cluster.arrive.release;\n\tbarrier.cluster.wait.acquire;" ::: "memory");
}

// clang-format on

}  // namespace lowrank::gpu

#endif
