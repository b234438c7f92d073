/// The floating-point mode of this library's own threads.
#pragma once

#if defined(__x86_64__) || defined(_M_X64)
#include <xmmintrin.h>
#elif defined(__aarch64__)
#include <cstdint>
#endif

namespace lowrank {

/// Round to nearest, denormals kept. A new thread inherits the mode of its creator, which a library
/// linked with -ffast-math may have changed.
inline void SetDefaultFloatMode() {
#if defined(__x86_64__) || defined(_M_X64)
  _mm_setcsr(0x1f80);
#elif defined(__aarch64__)
  const uint64_t mode = 0;
  __asm__ __volatile__("msr fpcr, %0" : : "r"(mode));
#endif
}

}  // namespace lowrank
