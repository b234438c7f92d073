/// The twins of cuda/ptx_sm90.cuh for a host compiler.
#pragma once

#include "cuda/emulator/device/ptx_emulated.h"
#include "cuda/emulator/hopper/hopper.h"

namespace lowrank::gpu {

LOWRANK_EMU_INLINE void BarrierInit(uint64_t* s_barrier, uint32_t count, LOWRANK_EMU_HERE) {
  emu::MbarrierInit(SharedAddress(s_barrier), count, site);
}
LOWRANK_EMU_INLINE void FenceBarrierInit(LOWRANK_EMU_HERE) { emu::FenceMbarrierInit(site); }
LOWRANK_EMU_INLINE void BarrierArriveExpectBytes(uint64_t* s_barrier, uint32_t bytes,
                                                 LOWRANK_EMU_HERE) {
  emu::MbarrierArriveExpectTx(SharedAddress(s_barrier), bytes, site);
}
LOWRANK_EMU_INLINE void BarrierArrive(uint64_t* s_barrier, LOWRANK_EMU_HERE) {
  emu::MbarrierArrive(SharedAddress(s_barrier), 1, site);
}
LOWRANK_EMU_INLINE void BarrierArriveAt(uint64_t* s_barrier, uint32_t rank, LOWRANK_EMU_HERE) {
  emu::MbarrierArrive(emu::MapAddress(SharedAddress(s_barrier), rank, site), 1, site,
                      emu::Scope::kCluster);
}
LOWRANK_EMU_INLINE void BarrierWait(uint64_t* s_barrier, uint32_t parity, LOWRANK_EMU_HERE) {
  emu::MbarrierTryWaitParity(SharedAddress(s_barrier), parity, site, emu::Scope::kCluster);
}

LOWRANK_EMU_INLINE void FenceProxyAsyncGlobal(LOWRANK_EMU_HERE) { emu::FenceProxyAsync(site); }

LOWRANK_EMU_INLINE void TensorLoad2DMulticast(void* s_dst, const TensorMap* map, int32_t x,
                                              int32_t y, uint64_t* s_barrier, uint16_t ranks,
                                              LOWRANK_EMU_HERE) {
  const int32_t coordinates[2] = {x, y};
  emu::TensorLoad(SharedAddress(s_dst), map, 2, coordinates, SharedAddress(s_barrier), ranks, site);
}
LOWRANK_EMU_INLINE void TensorLoad2D(void* s_dst, const TensorMap* map, int32_t x, int32_t y,
                                     uint64_t* s_barrier, LOWRANK_EMU_HERE) {
  TensorLoad2DMulticast(s_dst, map, x, y, s_barrier, 0, site);
}
LOWRANK_EMU_INLINE void PrefetchTensorMap(const TensorMap* map, LOWRANK_EMU_HERE) {
  emu::TensorPrefetch(map, site);
}

LOWRANK_EMU_INLINE void FenceProxyAsyncShared(LOWRANK_EMU_HERE) { emu::FenceProxyAsync(site); }
LOWRANK_EMU_INLINE void WgmmaFence(LOWRANK_EMU_HERE) { emu::WgmmaFence(site); }
LOWRANK_EMU_INLINE void WgmmaCommit(LOWRANK_EMU_HERE) { emu::WgmmaCommit(site); }
template <int kPending>
LOWRANK_EMU_INLINE void WgmmaWait(LOWRANK_EMU_HERE) {
  emu::WgmmaWait(kPending, site);
}
LOWRANK_EMU_INLINE uint64_t WgmmaDescriptor(const void* s_tile) {
  return static_cast<uint64_t>((SharedAddress(s_tile) & 0x3ffffu) >> 4) | uint64_t{1} << 16 |
         uint64_t{1024 >> 4} << 32 | uint64_t{1} << 62;
}
template <size_t kSums>
LOWRANK_EMU_INLINE void WgmmaBF16(float (&d)[kSums], uint64_t a, uint64_t b, uint32_t accumulate,
                                  LOWRANK_EMU_HERE) {
  emu::WgmmaShape shape;
  shape.n = 2 * kSums;
  emu::Wgmma(shape, d, a, b, accumulate != 0, false, site);
}
template <size_t kSums>
LOWRANK_EMU_INLINE void WgmmaF16(float (&d)[kSums], uint64_t a, uint64_t b, uint32_t accumulate,
                                 LOWRANK_EMU_HERE) {
  emu::WgmmaShape shape;
  shape.n = 2 * kSums;
  shape.bf16 = false;
  emu::Wgmma(shape, d, a, b, accumulate != 0, false, site);
}

template <size_t kSums>
LOWRANK_EMU_INLINE void WgmmaBF16(float (&d)[kSums], const uint32_t (&a)[4], uint64_t b,
                                  LOWRANK_EMU_HERE) {
  emu::WgmmaShape shape;
  shape.n = 2 * kSums;
  emu::WgmmaRegisters(shape, d, {a, a + 1, a + 2, a + 3}, b, true, false, site);
}
template <size_t kSums>
LOWRANK_EMU_INLINE void WgmmaF16(float (&d)[kSums], const uint32_t (&a)[4], uint64_t b,
                                 LOWRANK_EMU_HERE) {
  emu::WgmmaShape shape;
  shape.n = 2 * kSums;
  shape.bf16 = false;
  emu::WgmmaRegisters(shape, d, {a, a + 1, a + 2, a + 3}, b, true, false, site);
}

template <size_t kSums>
LOWRANK_EMU_INLINE void WgmmaS8U8(int32_t (&d)[kSums], uint64_t a, uint64_t b, uint32_t accumulate,
                                  LOWRANK_EMU_HERE) {
  emu::WgmmaShape shape;
  shape.n = 2 * kSums;
  shape.s8u8 = true;
  emu::Wgmma(shape, d, a, b, accumulate != 0, false, site);
}

LOWRANK_EMU_INLINE void StMatrixX4(void* s_row, const uint32_t (&r)[4], LOWRANK_EMU_HERE) {
  emu::StMatrix(r, 4, false, s_row, site);
}
template <int kCount>
LOWRANK_EMU_INLINE void RegistersUpTo(LOWRANK_EMU_HERE) {
  emu::SetMaxRegisters(kCount, true, site);
}
template <int kCount>
LOWRANK_EMU_INLINE void RegistersDownTo(LOWRANK_EMU_HERE) {
  emu::SetMaxRegisters(kCount, false, site);
}

LOWRANK_EMU_INLINE uint32_t ClusterRank() { return emu::ClusterRank(); }
LOWRANK_EMU_INLINE float4 LoadFromPeer(const float4* s_value, uint32_t rank, LOWRANK_EMU_HERE) {
  float4 value;
  emu::ClusterLoad(emu::MapAddress(SharedAddress(s_value), rank, site), &value, 16, site);
  return value;
}
LOWRANK_EMU_INLINE void ClusterSync(LOWRANK_EMU_HERE) {
  emu::ClusterArrive(site);
  emu::ClusterWait(site);
}

}  // namespace lowrank::gpu
