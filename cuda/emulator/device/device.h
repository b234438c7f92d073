/// CUDA's device language for a host compiler: what cuda/gpu.cuh includes where it is not nvcc that
/// compiles. Only what the kernels use; a function is added here as one line over runtime.h.
///
/// In instrumented builds (-fsanitize=thread, whose hooks the runtime defines) the compiler reports
/// plain loads and stores by itself; the functions here that touch memory report it themselves, so
/// they are neither instrumented nor inlined there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "cuda/emulator/device/device_math.h"
#include "cuda/emulator/device/device_types.h"
#include "cuda/emulator/runtime.h"

// #pragma unroll is nvcc's.
#pragma GCC diagnostic ignored "-Wunknown-pragmas"

#if defined(__SANITIZE_THREAD__)
#define LOWRANK_EMU_MEMORY [[maybe_unused]] static __attribute__((noinline, no_sanitize("thread")))
#define LOWRANK_EMU_HOOKS ::lowrank::emu::Hooks::kAlways
#else
#define LOWRANK_EMU_MEMORY [[maybe_unused]] static inline
#define LOWRANK_EMU_HOOKS ::lowrank::emu::Hooks::kNone
#endif

#define __host__
#define __device__
#define __forceinline__ inline __attribute__((always_inline))
#define __restrict__ __restrict

#define LOWRANK_DEVICE LOWRANK_EMU_INLINE

#define LOWRANK_KERNEL(name, Params, kThreads, kMinBlocks) \
  LOWRANK_EMU_KERNEL(name, Params, kThreads, kMinBlocks, ::lowrank::emu::GridDependencyWait())
#define LOWRANK_EARLY_KERNEL(name, Params, kThreads, kMinBlocks) \
  LOWRANK_EMU_KERNEL(name, Params, kThreads, kMinBlocks, )
#define LOWRANK_EMU_KERNEL(name, Params, kThreads, kMinBlocks, wait)                     \
  static void name(const Params& p);                                                     \
  [[maybe_unused]] static const bool name##_registered = ::lowrank::emu::RegisterKernel( \
      {#name,                                                                            \
       [](const void* params) {                                                          \
         wait;                                                                           \
         name(*static_cast<const Params*>(params));                                      \
       },                                                                                \
       sizeof(Params), (kThreads), (kMinBlocks), 0, LOWRANK_EMU_HOOKS});                 \
  static void name([[maybe_unused]] const Params& p)

#define threadIdx (::lowrank::emu::current->thread_idx)
#define blockIdx (::lowrank::emu::current->block->block_idx)
#define blockDim (::lowrank::emu::current->block->block_dim)
#define gridDim (::lowrank::emu::current->block->grid_dim)
[[maybe_unused]] static constexpr int warpSize = 32;

namespace lowrank::gpu {

/// The block's dynamic shared memory as `Storage`, 1,024-byte aligned.
template <typename Storage>
LOWRANK_EMU_INLINE Storage& DynamicShared() {
  const emu::Block& block = *emu::current->block;
  const size_t room_bytes =
      block.shared_bytes - static_cast<size_t>(block.dynamic_shared - block.shared_base);
  if (__builtin_expect(sizeof(Storage) > room_bytes, 0)) {
    emu::Fail("shared-size", emu::Site::Line(__FILE__, __LINE__),
              "DynamicShared: a struct of %zu bytes, the launch gave %zu", sizeof(Storage),
              room_bytes);
  }
  return *reinterpret_cast<Storage*>(block.dynamic_shared);
}

}  // namespace lowrank::gpu

// --------------------------------------------------------------------------------------- barriers

LOWRANK_EMU_INLINE void __syncthreads(LOWRANK_EMU_HERE) { lowrank::emu::BarrierSync(0, 0, site); }
LOWRANK_EMU_INLINE int __syncthreads_or(int predicate, LOWRANK_EMU_HERE) {
  return lowrank::emu::BarrierReduce(lowrank::emu::BarrierOp::kOr, predicate, site);
}
LOWRANK_EMU_INLINE int __syncthreads_and(int predicate, LOWRANK_EMU_HERE) {
  return lowrank::emu::BarrierReduce(lowrank::emu::BarrierOp::kAnd, predicate, site);
}
LOWRANK_EMU_INLINE int __syncthreads_count(int predicate, LOWRANK_EMU_HERE) {
  return lowrank::emu::BarrierReduce(lowrank::emu::BarrierOp::kCount, predicate, site);
}
LOWRANK_EMU_INLINE void __syncwarp(unsigned mask = 0xffffffffu, LOWRANK_EMU_HERE) {
  lowrank::emu::SyncWarp(mask, site);
}
LOWRANK_EMU_INLINE unsigned __activemask() { return lowrank::emu::ActiveMask(); }
/// Makes this thread's later atomics release what it has written, and acquire what they read.
LOWRANK_EMU_INLINE void __threadfence() { lowrank::emu::Fence(lowrank::emu::Scope::kDevice); }
LOWRANK_EMU_INLINE void __threadfence_block() { lowrank::emu::Fence(lowrank::emu::Scope::kBlock); }
LOWRANK_EMU_INLINE void __threadfence_system() {
  lowrank::emu::Fence(lowrank::emu::Scope::kDevice);
}
LOWRANK_EMU_INLINE void __nanosleep(unsigned, LOWRANK_EMU_HERE) {
  lowrank::emu::SpinYield("nanosleep", site);
}

/// Ends the launch.
[[noreturn]] LOWRANK_EMU_INLINE void __trap(LOWRANK_EMU_HERE) {
  lowrank::emu::Fail("fault", site, "trap");
}

// ------------------------------------------------------------------------------ shuffles and votes

namespace lowrank::emu {

template <typename T>
LOWRANK_EMU_INLINE T ShuffleValue(unsigned mask, T value, int select, int width, ShuffleMode mode,
                                  Site site) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 8);
  uint64_t bits = 0;
  __builtin_memcpy(&bits, &value, sizeof(T));
  bits = Shuffle(mask, bits, select, width, mode, site);
  T result;
  __builtin_memcpy(&result, &bits, sizeof(T));
  return result;
}

}  // namespace lowrank::emu

template <typename T>
LOWRANK_EMU_INLINE T __shfl_sync(unsigned mask, T value, int lane, int width = 32,
                                 LOWRANK_EMU_HERE) {
  return lowrank::emu::ShuffleValue(mask, value, lane, width, lowrank::emu::ShuffleMode::kIndex,
                                    site);
}
template <typename T>
LOWRANK_EMU_INLINE T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                                    LOWRANK_EMU_HERE) {
  return lowrank::emu::ShuffleValue(mask, value, static_cast<int>(delta), width,
                                    lowrank::emu::ShuffleMode::kUp, site);
}
template <typename T>
LOWRANK_EMU_INLINE T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                                      LOWRANK_EMU_HERE) {
  return lowrank::emu::ShuffleValue(mask, value, static_cast<int>(delta), width,
                                    lowrank::emu::ShuffleMode::kDown, site);
}
template <typename T>
LOWRANK_EMU_INLINE T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32,
                                     LOWRANK_EMU_HERE) {
  return lowrank::emu::ShuffleValue(mask, value, lanes, width, lowrank::emu::ShuffleMode::kXor,
                                    site);
}
LOWRANK_EMU_INLINE unsigned __ballot_sync(unsigned mask, int predicate, LOWRANK_EMU_HERE) {
  return lowrank::emu::Ballot(mask, predicate != 0, site);
}
LOWRANK_EMU_INLINE int __any_sync(unsigned mask, int predicate, LOWRANK_EMU_HERE) {
  return lowrank::emu::Ballot(mask, predicate != 0, site) != 0;
}
LOWRANK_EMU_INLINE int __all_sync(unsigned mask, int predicate, LOWRANK_EMU_HERE) {
  return lowrank::emu::Ballot(mask, predicate == 0, site) == 0;
}
LOWRANK_EMU_INLINE unsigned __match_any_sync(unsigned mask, unsigned value, LOWRANK_EMU_HERE) {
  return lowrank::emu::MatchAny(mask, value, site);
}
#define LOWRANK_EMU_REDUX(name, T, op)                                             \
  LOWRANK_EMU_INLINE T name(unsigned mask, T value, LOWRANK_EMU_HERE) {            \
    return static_cast<T>(lowrank::emu::Reduce(mask, static_cast<uint32_t>(value), \
                                               lowrank::emu::ReduceOp::op, site)); \
  }
LOWRANK_EMU_REDUX(__reduce_add_sync, unsigned, kAdd)
LOWRANK_EMU_REDUX(__reduce_add_sync, int, kAdd)
LOWRANK_EMU_REDUX(__reduce_min_sync, unsigned, kMinU)
LOWRANK_EMU_REDUX(__reduce_min_sync, int, kMinS)
LOWRANK_EMU_REDUX(__reduce_max_sync, unsigned, kMaxU)
LOWRANK_EMU_REDUX(__reduce_max_sync, int, kMaxS)
LOWRANK_EMU_REDUX(__reduce_and_sync, unsigned, kAnd)
LOWRANK_EMU_REDUX(__reduce_or_sync, unsigned, kOr)
LOWRANK_EMU_REDUX(__reduce_xor_sync, unsigned, kXor)
#undef LOWRANK_EMU_REDUX

// ---------------------------------------------------------------------------------------- atomics

namespace lowrank::emu {

template <typename T, typename F>
LOWRANK_EMU_MEMORY T AtomicUpdate(T* ptr, F next_of, Site site, Scope scope = Scope::kDevice) {
  AtomicBegin(ptr, sizeof(T), site, scope);
  T old;
  __atomic_load(ptr, &old, __ATOMIC_RELAXED);
  T next = next_of(old);
  while (!__atomic_compare_exchange(ptr, &old, &next, true, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED)) {
    next = next_of(old);
  }
  AtomicEnd(ptr, site, scope);
  return old;
}

}  // namespace lowrank::emu

#define LOWRANK_EMU_ATOMIC(name, next)                                                             \
  template <typename T, typename U>                                                                \
  LOWRANK_EMU_INLINE T name(T* ptr, U operand, LOWRANK_EMU_HERE) {                                 \
    const T value = static_cast<T>(operand);                                                       \
    return lowrank::emu::AtomicUpdate(ptr, [value](T old) { return static_cast<T>(next); }, site); \
  }
LOWRANK_EMU_ATOMIC(atomicAdd, old + value)
LOWRANK_EMU_ATOMIC(atomicSub, old - value)
LOWRANK_EMU_ATOMIC(atomicMin, value < old ? value : old)
LOWRANK_EMU_ATOMIC(atomicMax, old < value ? value : old)
LOWRANK_EMU_ATOMIC(atomicAnd, old& value)
LOWRANK_EMU_ATOMIC(atomicOr, old | value)
LOWRANK_EMU_ATOMIC(atomicXor, old ^ value)
LOWRANK_EMU_ATOMIC(atomicExch, (static_cast<void>(old), value))
LOWRANK_EMU_ATOMIC(atomicInc, old >= value ? T{0} : old + 1)
#undef LOWRANK_EMU_ATOMIC
template <typename T>
LOWRANK_EMU_INLINE T atomicCAS(T* ptr, T expected, T value, LOWRANK_EMU_HERE) {
  return lowrank::emu::AtomicUpdate(
      ptr, [expected, value](T old) { return old == expected ? value : old; }, site);
}

// ------------------------------------------------------------------- loads and stores of one width

namespace lowrank::emu {

template <typename T>
LOWRANK_EMU_MEMORY T Load(const T* ptr, Site site) {
  Access(ptr, sizeof(T), false, site);
  return *ptr;
}
template <typename T>
LOWRANK_EMU_MEMORY T LoadNonCoherent(const T* ptr, Site site) {
  if (__builtin_expect(observing, 0)) {
    AccessSlow(ptr, sizeof(T), AccessKind::kReadNonCoherent, site);
  }
  return *ptr;
}
template <typename T>
LOWRANK_EMU_MEMORY void Store(T* ptr, T value, Site site) {
  Access(ptr, sizeof(T), true, site);
  *ptr = value;
}

}  // namespace lowrank::emu

#define LOWRANK_EMU_LOAD(name)                                \
  template <typename T>                                       \
  LOWRANK_EMU_INLINE T name(const T* ptr, LOWRANK_EMU_HERE) { \
    return lowrank::emu::Load(ptr, site);                     \
  }
#define LOWRANK_EMU_STORE(name)                                     \
  template <typename T>                                             \
  LOWRANK_EMU_INLINE void name(T* ptr, T value, LOWRANK_EMU_HERE) { \
    lowrank::emu::Store(ptr, value, site);                          \
  }
template <typename T>
LOWRANK_EMU_INLINE T __ldg(const T* ptr, LOWRANK_EMU_HERE) {
  return lowrank::emu::LoadNonCoherent(ptr, site);
}
LOWRANK_EMU_LOAD(__ldca)
LOWRANK_EMU_LOAD(__ldcg)
LOWRANK_EMU_LOAD(__ldcs)
LOWRANK_EMU_LOAD(__ldlu)
LOWRANK_EMU_LOAD(__ldcv)
LOWRANK_EMU_STORE(__stwb)
LOWRANK_EMU_STORE(__stcg)
LOWRANK_EMU_STORE(__stcs)
LOWRANK_EMU_STORE(__stwt)
#undef LOWRANK_EMU_LOAD
#undef LOWRANK_EMU_STORE
