/// The floating-point mode of this library's kernels.
#pragma once

#include <cstdint>

#if defined(__x86_64__) || defined(_M_X64)
#include <xmmintrin.h>
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

/// That mode on a thread of the caller, whose own one comes back with the end of the scope.
class ScopedFloatMode {
 public:
  ScopedFloatMode() {
#if defined(__x86_64__) || defined(_M_X64)
    before_ = _mm_getcsr();
#elif defined(__aarch64__)
    __asm__ __volatile__("mrs %0, fpcr" : "=r"(before_));
#endif
    SetDefaultFloatMode();
  }
  ~ScopedFloatMode() {
#if defined(__x86_64__) || defined(_M_X64)
    _mm_setcsr(static_cast<uint32_t>(before_));
#elif defined(__aarch64__)
    __asm__ __volatile__("msr fpcr, %0" : : "r"(before_));
#endif
  }
  ScopedFloatMode(const ScopedFloatMode&) = delete;
  ScopedFloatMode& operator=(const ScopedFloatMode&) = delete;

 private:
  uint64_t before_ = 0;
};

}  // namespace lowrank
