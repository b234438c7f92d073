/// Philox4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC
/// 2011): a counter-based generator. Element i of a stream is a pure function of (seed, i), without
/// state, order or storage. Host and device code share this file.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define LOWRANK_HOST_DEVICE __host__ __device__
#else
#define LOWRANK_HOST_DEVICE
#endif

namespace lowrank {

struct Philox4 {
  uint32_t lane[4];
};

LOWRANK_HOST_DEVICE inline Philox4 Philox4x32(const Philox4& counter, uint32_t key0,
                                              uint32_t key1) {
  Philox4 c = counter;
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = static_cast<uint64_t>(c.lane[0]) * 0xD2511F53u;
    const uint64_t p1 = static_cast<uint64_t>(c.lane[2]) * 0xCD9E8D57u;
    const Philox4 next = {
        {static_cast<uint32_t>(p1 >> 32) ^ c.lane[1] ^ key0, static_cast<uint32_t>(p1),
         static_cast<uint32_t>(p0 >> 32) ^ c.lane[3] ^ key1, static_cast<uint32_t>(p0)}};
    c = next;
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return c;
}

/// Streams separate draws for different purposes under one seed (word 3 of the counter).
enum PhiloxStream : uint32_t { kDropoutStream = 1, kNormalStream = 2, kUniformStream = 3 };

/// The four 32-bit draws for elements 4 · group .. 4 · group + 3 of a stream.
LOWRANK_HOST_DEVICE inline Philox4 PhiloxGroup(uint64_t seed, uint64_t group, uint32_t stream) {
  const Philox4 counter = {
      {static_cast<uint32_t>(group), static_cast<uint32_t>(group >> 32), 0u, stream}};
  return Philox4x32(counter, static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
}

/// Dropout keeps an element if its draw is at least this: P(drop) = threshold / 2^32, which is `p`
/// to within 2^-33.
LOWRANK_HOST_DEVICE inline uint32_t DropoutThreshold(double p) {
  const double scaled = p * 4294967296.0 + 0.5;
  return scaled >= 4294967295.0 ? 0xffffffffu : static_cast<uint32_t>(scaled);
}

/// Is element `index` (row-major, m · K + k) of x kept?
LOWRANK_HOST_DEVICE inline bool DropoutKeeps(uint64_t seed, uint64_t index, uint32_t threshold) {
  const Philox4 draw = PhiloxGroup(seed, index >> 2, kDropoutStream);
  // Selected, not indexed: a GPU keeps an array in registers only if its indices are constants.
  const uint32_t low = (index & 1) != 0 ? draw.lane[1] : draw.lane[0];
  const uint32_t high = (index & 1) != 0 ? draw.lane[3] : draw.lane[2];
  return ((index & 2) != 0 ? high : low) >= threshold;
}

}  // namespace lowrank
