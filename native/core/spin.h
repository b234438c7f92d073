/// Looking again for a short while before sleeping.
#pragma once

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

}  // namespace lowrank
