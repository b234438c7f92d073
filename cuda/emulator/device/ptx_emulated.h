/// The twins of cuda/ptx.cuh for a host compiler: the same names and arguments over the runtime.
#pragma once

#include "cuda/emulator/device/device.h"

namespace lowrank::gpu {

LOWRANK_EMU_INLINE uint32_t SharedAddress(const void* s_ptr) { return emu::SharedAddress(s_ptr); }

LOWRANK_EMU_INLINE void CpAsync16(void* s_dst, const void* g_src, uint32_t source_bytes,
                                  LOWRANK_EMU_HERE) {
  emu::CpAsync(s_dst, g_src, 16, source_bytes, site);
}
LOWRANK_EMU_INLINE void CpAsync8(void* s_dst, const void* g_src, uint32_t source_bytes,
                                 LOWRANK_EMU_HERE) {
  emu::CpAsync(s_dst, g_src, 8, source_bytes, site);
}
LOWRANK_EMU_INLINE void CpAsync4(void* s_dst, const void* g_src, uint32_t source_bytes,
                                 LOWRANK_EMU_HERE) {
  emu::CpAsync(s_dst, g_src, 4, source_bytes, site);
}
LOWRANK_EMU_INLINE void CpAsyncCommit(LOWRANK_EMU_HERE) { emu::CpAsyncCommit(site); }
template <int kPending>
LOWRANK_EMU_INLINE void CpAsyncWait(LOWRANK_EMU_HERE) {
  emu::CpAsyncWait(kPending, site);
}

LOWRANK_EMU_INLINE void LdMatrixX4(uint32_t (&r)[4], const void* s_row, LOWRANK_EMU_HERE) {
  emu::LdMatrix(r, 4, false, s_row, site);
}
LOWRANK_EMU_INLINE void LdMatrixX2(uint32_t (&r)[2], const void* s_row, LOWRANK_EMU_HERE) {
  emu::LdMatrix(r, 2, false, s_row, site);
}
LOWRANK_EMU_INLINE void LdMatrixX4Trans(uint32_t (&r)[4], const void* s_row, LOWRANK_EMU_HERE) {
  emu::LdMatrix(r, 4, true, s_row, site);
}
LOWRANK_EMU_INLINE void LdMatrixX2Trans(uint32_t (&r)[2], const void* s_row, LOWRANK_EMU_HERE) {
  emu::LdMatrix(r, 2, true, s_row, site);
}

LOWRANK_EMU_INLINE void MmaBF16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                LOWRANK_EMU_HERE) {
  const uint32_t b[2] = {b0, b1};
  emu::Mma(emu::MmaType::kBF16, d, a, b, d, site);
}
LOWRANK_EMU_INLINE void MmaF16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                               LOWRANK_EMU_HERE) {
  const uint32_t b[2] = {b0, b1};
  emu::Mma(emu::MmaType::kF16, d, a, b, d, site);
}
LOWRANK_EMU_INLINE void MmaTF32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                LOWRANK_EMU_HERE) {
  const uint32_t b[2] = {b0, b1};
  emu::Mma(emu::MmaType::kTF32, d, a, b, d, site);
}
LOWRANK_EMU_INLINE void MmaS8(int32_t (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                              LOWRANK_EMU_HERE) {
  const uint32_t b[2] = {b0, b1};
  emu::MmaInt(emu::MmaType::kS8, d, a, b, d, site);
}
LOWRANK_EMU_INLINE void MmaS8U8(int32_t (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                LOWRANK_EMU_HERE) {
  const uint32_t b[2] = {b0, b1};
  emu::MmaInt(emu::MmaType::kS8U8, d, a, b, d, site);
}
/// Nearest tf32, ties away from zero; NaN becomes the canonical one.
LOWRANK_EMU_INLINE uint32_t ToTF32(float value) {
  const uint32_t bits = __float_as_uint(value);
  if ((bits & 0x7f800000u) == 0x7f800000u) {
    return (bits & 0x007fffffu) != 0 ? 0x7fffffffu : bits;
  }
  return (bits + 0x1000u) & 0xffffe000u;
}

/// libm's, within what the instruction may return.
LOWRANK_EMU_INLINE float Exp2(float x) {
  const float value = exp2f(x);
  return value < 0x1p-126f ? 0.0f : value;
}

LOWRANK_EMU_INLINE uint32_t Permute(uint32_t a, uint32_t b, uint32_t selector) {
  return __byte_perm(a, b, selector);
}
LOWRANK_EMU_INLINE uint32_t AndOr(uint32_t a, uint32_t b, uint32_t c) { return (a & b) | c; }
LOWRANK_EMU_INLINE uint32_t Keep(uint32_t value) { return value; }
template <typename T>
LOWRANK_EMU_INLINE const T* Keep(const T* value) {
  return value;
}

LOWRANK_EMU_INLINE void SlotFilled(const void* s_slot, uint32_t generation, LOWRANK_EMU_HERE) {
  if (__builtin_expect(emu::observing, 0)) emu::NoteSlotFilled(s_slot, generation, site);
}
LOWRANK_EMU_INLINE void SlotRead(const void* s_slot, uint32_t generation, LOWRANK_EMU_HERE) {
  if (__builtin_expect(emu::observing, 0)) emu::NoteSlotRead(s_slot, generation, site);
}

LOWRANK_EMU_INLINE void NamedBarrier(uint32_t id, uint32_t threads, LOWRANK_EMU_HERE) {
  emu::BarrierSync(id, threads, site);
}

LOWRANK_EMU_INLINE uint4 LoadStream16(const void* g_src, LOWRANK_EMU_HERE) {
  return emu::Load(static_cast<const uint4*>(g_src), site);
}

LOWRANK_EMU_INLINE uint4 LoadStream16If(bool wanted, const void* g_src, LOWRANK_EMU_HERE) {
  return wanted ? emu::Load(static_cast<const uint4*>(g_src), site) : uint4{};
}

LOWRANK_EMU_INLINE void Store16(void* g_dst, uint4 value, LOWRANK_EMU_HERE) {
  emu::Store(static_cast<uint4*>(g_dst), value, site);
}

/// The scope is the device's, as in the instructions; another one is a fault to be planted.
LOWRANK_EMU_INLINE uint32_t AtomicAddAcqRel(uint32_t* g_counter, uint32_t value, LOWRANK_EMU_HERE,
                                            emu::Scope scope = emu::Scope::kDevice) {
  emu::NoteRelease(g_counter, site, scope);
  const uint32_t old = emu::AtomicUpdate(
      g_counter, [value](uint32_t before) { return before + value; }, site, scope);
  emu::NoteAcquire(g_counter, site, scope);
  return old;
}
LOWRANK_EMU_INLINE uint32_t LoadAcquire(const uint32_t* g_flag, LOWRANK_EMU_HERE,
                                        emu::Scope scope = emu::Scope::kDevice) {
  return emu::LoadAcquire(g_flag, site, scope);
}
LOWRANK_EMU_INLINE void StoreRelease(uint32_t* g_flag, uint32_t value, LOWRANK_EMU_HERE,
                                     emu::Scope scope = emu::Scope::kDevice) {
  emu::StoreRelease(g_flag, value, site, scope);
}

LOWRANK_EMU_INLINE void GridDependencyWait() { emu::GridDependencyWait(); }
LOWRANK_EMU_INLINE void GridDependencyLaunch() {}

}  // namespace lowrank::gpu
