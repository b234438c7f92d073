#pragma once

#include <cstdint>

namespace lowrank::gpu {

constexpr uint32_t kCastThreads = 256;
constexpr uint32_t kCastUnroll = 4;  // runs of 16 bytes (of the wider type) a thread

struct CastParams {
  const void* src;
  void* dst;
  int64_t elems;    // of the copy kernel: bytes
  uint32_t vector;  // both pointers are 16-byte aligned
};

}  // namespace lowrank::gpu
