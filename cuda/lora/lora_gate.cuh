/// Which elements of x the adapter reads, sixteen bytes at a time.
#pragma once

#include "cuda/gpu.cuh"
#include "cuda/lora/lora_parts.cuh"
#include "native/host_device/params/lora_shrink.h"
#include "native/host_device/philox.h"

namespace lowrank::gpu {

/// Bit e: is element 4 · group + e kept?
LOWRANK_DEVICE uint32_t KeptOfGroup(const LoraGate& gate, uint64_t group) {
  const Philox4 draw = PhiloxGroup(gate.seed, group, kDropoutStream);
  uint32_t kept = 0;
#pragma unroll
  for (int e = 0; e < 4; ++e) kept |= (draw.lane[e] >= gate.threshold ? 1u : 0u) << e;
  return kept;
}

template <int kElems>
LOWRANK_DEVICE uint32_t KeptByPhilox(const LoraGate& gate, int64_t index) {
  const uint64_t group = static_cast<uint64_t>(index) >> 2;
  const int phase = static_cast<int>(index & 3);
  uint32_t kept = 0;
#pragma unroll
  for (int i = 0; i < kElems / 4; ++i) kept |= KeptOfGroup(gate, group + i) << (4 * i);
  // If K is not a multiple of 4, a chunk may start inside a group and end in one more.
  if (phase == 0) return kept;
  return (kept | KeptOfGroup(gate, group + kElems / 4) << kElems) >> phase;
}

LOWRANK_DEVICE uint32_t KeptWord(uint32_t word) { return (word & 0x7fffffffu) != 0 ? 1u : 0u; }
LOWRANK_DEVICE uint32_t KeptPair(uint32_t pair) {
  return ((pair & 0x7fffu) != 0 ? 1u : 0u) | ((pair & 0x7fff0000u) != 0 ? 2u : 0u);
}

template <int kElems>
LOWRANK_DEVICE uint32_t KeptByMask(const LoraGate& gate, int64_t index, int inside) {
  uint32_t kept = 0;
  if (gate.mask_element == kLoraF32) {
    const uint32_t* g_mask = static_cast<const uint32_t*>(gate.mask) + index;
    if (gate.mask_aligned == 0) {
      for (int e = 0; e < inside; ++e) kept |= KeptWord(g_mask[e]) << e;
      return kept;
    }
#pragma unroll
    for (int e = 0; e < kElems; e += 4) {
      const uint4 words = *reinterpret_cast<const uint4*>(g_mask + e);
      kept |= (KeptWord(words.x) | KeptWord(words.y) << 1 | KeptWord(words.z) << 2 |
               KeptWord(words.w) << 3)
              << e;
    }
    return kept;
  }
  const uint16_t* g_mask = static_cast<const uint16_t*>(gate.mask) + index;
  if (gate.mask_aligned == 0) {
    for (int e = 0; e < inside; ++e) kept |= (KeptPair(g_mask[e]) & 1u) << e;
    return kept;
  }
  if constexpr (kElems == 8) {
    const uint4 words = *reinterpret_cast<const uint4*>(g_mask);
    return KeptPair(words.x) | KeptPair(words.y) << 2 | KeptPair(words.z) << 4 |
           KeptPair(words.w) << 6;
  } else {
    const uint2 words = *reinterpret_cast<const uint2*>(g_mask);
    return KeptPair(words.x) | KeptPair(words.y) << 2;
  }
}

/// Bit e: is element `index` + e of x kept? Of kElems elements, the first `inside` are
/// tested.
template <int kElems>
LOWRANK_DEVICE uint32_t KeptBits(const LoraGate& gate, int64_t index, int inside) {
  return gate.kind == kLoraGatePhilox ? KeptByPhilox<kElems>(gate, index)
                                      : KeptByMask<kElems>(gate, index, inside);
}

LOWRANK_DEVICE uint32_t WordMask(uint32_t kept) { return (kept & 1u) != 0 ? 0xffffffffu : 0u; }
LOWRANK_DEVICE uint32_t PairMask(uint32_t kept) {
  return ((kept & 1u) != 0 ? 0xffffu : 0u) | ((kept & 2u) != 0 ? 0xffff0000u : 0u);
}

/// A chunk with its dropped elements set to zero, whatever they held.
template <typename T>
LOWRANK_DEVICE uint4 KeepOnly(uint4 words, uint32_t kept) {
  if constexpr (T::kBytes == 2) {
    return make_uint4(words.x & PairMask(kept), words.y & PairMask(kept >> 2),
                      words.z & PairMask(kept >> 4), words.w & PairMask(kept >> 6));
  } else {
    return make_uint4(words.x & WordMask(kept), words.y & WordMask(kept >> 1),
                      words.z & WordMask(kept >> 2), words.w & WordMask(kept >> 3));
  }
}

}  // namespace lowrank::gpu
