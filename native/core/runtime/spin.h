/// Looking again for a short while before sleeping.
#pragma once

#include <thread>

namespace lowrank {

/// How often a thread looks before it sleeps, about 50 us: the ops of one training step follow each
/// other closer than the wake of a sleeping thread costs.
constexpr int kSpins = 4000;

/// Tells the processor that this is a spin.
inline void Pause() {
#if defined(__x86_64__) || defined(_M_X64)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ __volatile__("yield");
#endif
}

// Pauses between two offers of the core, about 3 us: whom this thread waits for may have been put
// on the same one, and the system takes milliseconds to see that another is idle.
constexpr int kPausesPerYield = 256;

/// Waits for done() that long; says whether it came.
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
