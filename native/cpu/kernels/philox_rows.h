/// Philox4x32-10 over a run of groups: the same draws as native/core/philox.h, written so that the
/// compiler runs kLanes groups at once (the tests compare both).
#pragma once

#include "native/core/philox.h"
#include "native/cpu/kernels/simd.h"

namespace lowrank::cpu::LOWRANK_ISA {

// Draws of one call: 64 groups of four, 1 KiB on the stack.
constexpr int64_t kDrawRun = 256;

/// draws[4 g + l] = PhiloxGroup(seed, group + g, kDropoutStream).lane[l] for g < groups <= 64.
static inline void DropoutDraws(uint64_t seed, uint64_t group, int64_t groups, uint32_t* draws) {
  constexpr int kLanes = 16;
  for (int64_t g0 = 0; g0 < groups; g0 += kLanes) {
    uint32_t c0[kLanes], c1[kLanes], c2[kLanes], c3[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      const uint64_t g = group + static_cast<uint64_t>(g0 + i);
      c0[i] = static_cast<uint32_t>(g);
      c1[i] = static_cast<uint32_t>(g >> 32);
      c2[i] = 0;
      c3[i] = kDropoutStream;
    }
    uint32_t key0 = static_cast<uint32_t>(seed);
    uint32_t key1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round) {
      for (int i = 0; i < kLanes; ++i) {
        const uint64_t p0 = static_cast<uint64_t>(c0[i]) * 0xD2511F53u;
        const uint64_t p1 = static_cast<uint64_t>(c2[i]) * 0xCD9E8D57u;
        c0[i] = static_cast<uint32_t>(p1 >> 32) ^ c1[i] ^ key0;
        c2[i] = static_cast<uint32_t>(p0 >> 32) ^ c3[i] ^ key1;
        c1[i] = static_cast<uint32_t>(p1);
        c3[i] = static_cast<uint32_t>(p0);
      }
      key0 += 0x9E3779B9u;
      key1 += 0xBB67AE85u;
    }
    const int64_t count = Min(kLanes, groups - g0);
    for (int64_t i = 0; i < count; ++i) {
      uint32_t* out = draws + (g0 + i) * 4;
      out[0] = c0[i];
      out[1] = c1[i];
      out[2] = c2[i];
      out[3] = c3[i];
    }
  }
}

}  // namespace lowrank::cpu::LOWRANK_ISA
