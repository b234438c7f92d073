/// Polls for a short while before sleeping.
#pragma once

#include <thread>

namespace lowrank {

/// Number of polls before a thread sleeps, about 50 us: the ops of one training step follow each
/// other faster than a sleeping thread wakes.
constexpr int kSpins = 4000;

/// Tells the processor that this is a spin loop.
inline void Pause() {
#if defined(__x86_64__) || defined(_M_X64)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ __volatile__("yield");
#endif
}

// Pauses between two yields of the core, about 3 us: the awaited thread may be on the same core,
// and the system takes milliseconds to notice that another is idle.
constexpr int kPausesPerYield = 256;

/// Waits that long for done(), and returns whether it came.
template <typename Done>
bool SpinUntil(const Done& done) {
  for (int spin = 1; spin <= kSpins; ++spin) {
    if (done()) return true;
    if (spin % kPausesPerYield == 0) {
      std::this_thread::yield();
    } else {
      Pause();
    }
  }
  return done();
}

}  // namespace lowrank
