/// What the emulated device says of itself: the published numbers of a card, so that plans are made
/// as they would be there.
#pragma once

#include "native/cuda/plans/cards.h"

namespace lowrank::emu::driver {

using DeviceModel = cuda::Card;

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
