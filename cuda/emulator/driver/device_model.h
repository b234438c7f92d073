/// What the emulated device says of itself: the published numbers of one card for each compute
/// capability, so that plans are made as they would be there.
#pragma once

#include <cstdint>

namespace lowrank::emu::driver {

struct DeviceModel {
  int sm;  // compute capability, major · 10 + minor
  const char* card;
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

/// Every device: static shared memory of a block without opt-in, and threads of a block.
constexpr int kDefaultSharedBytes = 48 << 10;
constexpr int kMaxThreads = 1024;
/// Of shared memory, what the system takes of each block (sm_80 and up).
constexpr int kReservedSharedBytes = 1024;
constexpr int kRegistersPerSm = 64 << 10;

/// The card of the greatest capability that is not above `sm`, with `sm` as its capability.
DeviceModel ModelOf(int sm);

/// False for an attribute that the driver does not have.
bool DeviceAttribute(const DeviceModel& model, int attribute, int* value);

}  // namespace lowrank::emu::driver
