/// A TMA descriptor as a member of a kernel's parameters.
#pragma once

#include <cstdint>

namespace lowrank::gpu {

/// Opaque: the driver encodes it (TensorMapRequest), and the copy engine reads it. 64-byte aligned,
/// as the hardware requires.
struct alignas(64) TensorMap {
  uint64_t opaque[16];
};
static_assert(sizeof(TensorMap) == 128, "CUtensorMap");

}  // namespace lowrank::gpu
