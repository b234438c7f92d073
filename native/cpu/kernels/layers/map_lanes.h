/// The formulas of native/host_device/map_function.h on vectors of doubles: the same operations in
/// the same order, so the bits of one element at a time.
///
/// A vector of doubles has half the lanes of one of floats. [512, 2048] of swiglu takes a sixth of
/// the time of scalar code with AVX-512.
#pragma once

#include "native/cpu/kernels/isa/simd.h"
#include "native/host_device/map_function.h"

namespace lowrank::cpu::LOWRANK_ISA {

constexpr int kDoubleLanes = kVL / 2;
typedef double VecD __attribute__((vector_size(kVL * 4)));
typedef int64_t VecM __attribute__((vector_size(kVL * 4)));
typedef float HalfF __attribute__((vector_size(kVL * 2)));
typedef float LooseHalfF __attribute__((vector_size(kVL * 2), aligned(1), may_alias));

LOWRANK_INLINE VecD LoadDoubles(const float* p) {
  const HalfF half = *reinterpret_cast<const LooseHalfF*>(p);
  return __builtin_convertvector(half, VecD);
}
LOWRANK_INLINE void StoreFloats(float* p, VecD v) {
  *reinterpret_cast<LooseHalfF*>(p) = __builtin_convertvector(v, HalfF);
}

}  // namespace lowrank::cpu::LOWRANK_ISA

namespace lowrank {

template <>
struct MapLanes<cpu::LOWRANK_ISA::VecD> {
  using VecD = cpu::LOWRANK_ISA::VecD;
  using VecM = cpu::LOWRANK_ISA::VecM;
  using VecQ = cpu::LOWRANK_ISA::VecQ;
  LOWRANK_MAP_INLINE VecD Splat(double value) { return value - VecD{}; }
  LOWRANK_MAP_INLINE VecQ Bits(VecD value) { return reinterpret_cast<VecQ>(value); }
  LOWRANK_MAP_INLINE VecD FromBits(VecQ bits) { return reinterpret_cast<VecD>(bits); }
  LOWRANK_MAP_INLINE VecD Select(VecM condition, VecD yes, VecD no) { return condition ? yes : no; }
};

}  // namespace lowrank

namespace lowrank::cpu::LOWRANK_ISA {

/// out[i] = f(in[i]), in whole vectors and then one at a time. `vector` takes a VecD, `one` a
/// float.
template <typename Vector, typename One>
LOWRANK_INLINE void EachDouble(int64_t count, const Vector& vector, const One& one) {
  int64_t i = 0;
  for (; i + kDoubleLanes <= count; i += kDoubleLanes) vector(i);
  for (; i < count; ++i) one(i);
}

}  // namespace lowrank::cpu::LOWRANK_ISA
