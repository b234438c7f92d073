/// The published numbers of one card for each compute capability. Plans of a card that is not here
/// are made for these, and the emulated device says them of itself.
#pragma once

#include <cstdint>

#include "native/cuda/plans/plan.h"

namespace lowrank::cuda {

struct Card {
  int sm;  // compute capability, major · 10 + minor
  const char* name;
  int sm_count;
  int shared_bytes_per_block;  // with opt-in
  int shared_bytes_per_sm;
  int l2_bytes;
  int threads_per_sm;
  int blocks_per_sm;
  int clock_khz;
  int memory_clock_khz;
  int memory_bus_bits;
};

constexpr int KiB(int n) { return n << 10; }
constexpr int MiB(int n) { return n << 20; }

// clang-format off
constexpr Card kCards[] = {
  // sm  card                SMs  block     SM        L2       threads blocks  clock    memory    bus
  { 80, "A100 SXM 80 GB",    108, KiB(163), KiB(164), MiB(40),  2048,  32,   1410000,  1593000, 5120},
  { 86, "GeForce RTX 3090",   82, KiB(99),  KiB(100), MiB(6),   1536,  16,   1695000,  9751000,  384},
  { 89, "GeForce RTX 4090",  128, KiB(99),  KiB(100), MiB(72),  1536,  24,   2520000, 10501000,  384},
  { 90, "H100 SXM 80 GB",    132, KiB(227), KiB(228), MiB(50),  2048,  32,   1980000,  2619000, 5120},
  {100, "B200",              148, KiB(227), KiB(228), MiB(126), 2048,  32,   1965000,  3996000, 8192},
  {120, "GeForce RTX 5090",  170, KiB(99),  KiB(100), MiB(96),  1536,  24,   2407000, 14001000,  512},
};
// clang-format on

inline DeviceLimits LimitsOf(const Card& card) {
  DeviceLimits limits;
  limits.sm = card.sm;
  limits.sm_count = card.sm_count;
  limits.shared_bytes_per_block = card.shared_bytes_per_block;
  limits.shared_bytes_per_sm = card.shared_bytes_per_sm;
  limits.l2_bytes = card.l2_bytes;
  return limits;
}

}  // namespace lowrank::cuda
