/// Every PTX instruction of the sm_80 kernels, one wrapper each; the emulated twins are in
/// cuda/emulator/device/ptx_emulated.h. Part of gpu.cuh, which kernels include.
#pragma once

#if !defined(__CUDACC__)

#include "cuda/emulator/device/ptx_emulated.h"

#else

#include <cstdint>

namespace lowrank::gpu {

#define LOWRANK_PTX static __device__ __forceinline__

// clang-format off

/// Byte address in the shared window.
LOWRANK_PTX uint32_t SharedAddress(const void* s_ptr) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(s_ptr));
}

/// Copies 16 bytes from global to shared memory, asynchronously; `source_bytes` of them are read,
/// the rest is zero.
LOWRANK_PTX void CpAsync16(void* s_dst, const void* g_src, uint32_t source_bytes) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;"
               :: "r"(SharedAddress(s_dst)), "l"(g_src), "r"(source_bytes) : "memory");
}
LOWRANK_PTX void CpAsync8(void* s_dst, const void* g_src, uint32_t source_bytes) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;"
               :: "r"(SharedAddress(s_dst)), "l"(g_src), "r"(source_bytes) : "memory");
}
LOWRANK_PTX void CpAsync4(void* s_dst, const void* g_src, uint32_t source_bytes) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;"
               :: "r"(SharedAddress(s_dst)), "l"(g_src), "r"(source_bytes) : "memory");
}
LOWRANK_PTX void CpAsyncCommit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/// Waits until at most kPending of this thread's groups are in flight. Copies of other threads are
/// visible after a barrier that follows.
template <int kPending>
LOWRANK_PTX void CpAsyncWait() { asm volatile("cp.async.wait_group %0;" :: "n"(kPending) : "memory"); }

/// Lane l gives the address of row l % 8 of matrix l / 8 (16 bytes), and receives from each 8 x 8
/// matrix row l / 4, columns 2 (l % 4) and + 1. Transposed: column l / 4, rows 2 (l % 4) and + 1.
LOWRANK_PTX void LdMatrixX4(uint32_t (&r)[4], const void* s_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(SharedAddress(s_row)) : "memory");
}
LOWRANK_PTX void LdMatrixX2(uint32_t (&r)[2], const void* s_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
               : "=r"(r[0]), "=r"(r[1]) : "r"(SharedAddress(s_row)) : "memory");
}
LOWRANK_PTX void LdMatrixX4Trans(uint32_t (&r)[4], const void* s_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(SharedAddress(s_row)) : "memory");
}
LOWRANK_PTX void LdMatrixX2Trans(uint32_t (&r)[2], const void* s_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
               : "=r"(r[0]), "=r"(r[1]) : "r"(SharedAddress(s_row)) : "memory");
}

/// d [16, 8] += a [16, 16] · b [16, 8]. With g = lane / 4 and t = lane % 4:
///   a[0] (g, 2t..), a[1] (g + 8, 2t..), a[2] (g, 2t + 8..), a[3] (g + 8, 2t + 8..)
///   b[0] (2t.., g), b[1] (2t + 8.., g)
///   d[0] (g, 2t), d[1] (g, 2t + 1), d[2] (g + 8, 2t), d[3] (g + 8, 2t + 1)
LOWRANK_PTX void MmaBF16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
               "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
LOWRANK_PTX void MmaF16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
               "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
/// d [16, 8] += a [16, 8] · b [8, 8], operands rounded to tf32 (1 + 8 + 10 bits):
///   a[0] (g, t), a[1] (g + 8, t), a[2] (g, t + 4), a[3] (g + 8, t + 4); b0 (t, g), b1 (t + 4, g)
LOWRANK_PTX void MmaTF32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
               "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
/// d [16, 8] += a [16, 32] · b [32, 8], signed bytes into int32; each word holds four along k:
///   a[0] (g, 4t..), a[1] (g + 8, 4t..), a[2] (g, 4t + 16..), a[3] (g + 8, 4t + 16..)
LOWRANK_PTX void MmaS8(int32_t (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
               "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
/// The same with unsigned bytes of b. Sums wrap at 32 bits, in the emulator too.
LOWRANK_PTX void MmaS8U8(int32_t (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.u8.s32 "
               "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
/// Nearest tf32, ties away from zero.
LOWRANK_PTX uint32_t ToTF32(float value) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return bits;
}

/// 2^x, off by 2^-22 of it at most; below 2^-126 it is 0.
LOWRANK_PTX float Exp2(float x) {
  float value;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(value) : "f"(x));
  return value;
}

/// The byte permute and (a & b) | c as written: the compiler would narrow the first's selectors,
/// at one operation each, and cut the second in two if b and c are constants.
LOWRANK_PTX uint32_t Permute(uint32_t a, uint32_t b, uint32_t selector) {
  uint32_t bytes;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(bytes) : "r"(a), "r"(b), "r"(selector));
  return bytes;
}
LOWRANK_PTX uint32_t AndOr(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t bits;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(bits) : "r"(a), "r"(b), "r"(c));
  return bits;
}

/// Does nothing here. The emulator's checks compare every read of a ring slot with its last
/// filling: `generation` is the same in SlotRead as in SlotFilled, and different in each turn.
LOWRANK_PTX void SlotFilled(const void*, uint32_t) {}
LOWRANK_PTX void SlotRead(const void*, uint32_t) {}

/// `value`, computed here and kept: it is not recomputed in each iteration of a loop that uses it.
LOWRANK_PTX uint32_t Keep(uint32_t value) {
  asm volatile("" : "+r"(value));
  return value;
}
template <typename T>
LOWRANK_PTX const T* Keep(const T* value) {
  asm volatile("" : "+l"(value));
  return value;
}

/// Barrier `id` of the block (1 to 15) for `threads` of its threads, in whole warps.
LOWRANK_PTX void NamedBarrier(uint32_t id, uint32_t threads) {
  asm volatile("bar.sync %0, %1;" :: "r"(id), "r"(threads) : "memory");
}

/// Loads 16 bytes that this launch does not write and uses once: bypasses L1, first to leave L2.
LOWRANK_PTX uint4 LoadStream16(const void* g_src) {
  uint4 v;
  asm volatile("ld.global.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(g_src));
  return v;
}

/// The same if `wanted`; otherwise nothing is read, and the result is undefined.
LOWRANK_PTX uint4 LoadStream16If(bool wanted, const void* g_src) {
  uint4 v;
  asm volatile("{ .reg .pred p; setp.ne.u32 p, %5, 0;\n\t"
               "@p ld.global.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4]; }"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(g_src), "r"(static_cast<uint32_t>(wanted)));
  return v;
}

/// Stores 16 bytes to global memory at once; the compiler might split an ordinary store in four.
LOWRANK_PTX void Store16(void* g_dst, uint4 value) {
  asm volatile("st.global.v4.u32 [%0], {%1,%2,%3,%4};"
               :: "l"(g_dst), "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w) : "memory");
}

/// Release and acquire at device scope, for counters and flags between blocks.
LOWRANK_PTX uint32_t AtomicAddAcqRel(uint32_t* g_counter, uint32_t value) {
  uint32_t old;
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;"
               : "=r"(old) : "l"(g_counter), "r"(value) : "memory");
  return old;
}
LOWRANK_PTX uint32_t LoadAcquire(const uint32_t* g_flag) {
  uint32_t value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(g_flag) : "memory");
  return value;
}
LOWRANK_PTX void StoreRelease(uint32_t* g_flag, uint32_t value) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" :: "l"(g_flag), "r"(value) : "memory");
}

/// Waits until the launches before this one have ended and their writes are visible (programmatic
/// dependent launch, from sm_90 on; before, no launch starts until the last has ended). The comment
/// becomes the instruction in the PTX from which machine code for sm_90 and later is made
/// (cuda/tools/machine-ptx.mjs).
LOWRANK_PTX void GridDependencyWait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#else
  asm volatile("// sm_90: griddepcontrol.wait;" ::: "memory");
#endif
}
/// From here on the next launch may use multiprocessors that this one leaves free.
LOWRANK_PTX void GridDependencyLaunch() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#else
  asm volatile("// sm_90: griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// clang-format on

}  // namespace lowrank::gpu

#endif
