/// The insides of the counters: each lane logs its accesses, and when the warp meets they are put
/// together to warp-wide requests.
#pragma once

#include <cstdint>

#include "cuda/emulator/runtime.h"

namespace lowrank::emu {

struct Warp;
struct BlockState;

struct LoggedAccess {
  Site site;
  uintptr_t address;
  uint16_t bytes;
  RequestKind kind;
};

/// Turns the logs of a warp's lanes into requests: the n-th access of a site in one lane belongs
/// with the n-th of it in the others.
void FlushLogs(BlockState* block, Warp* warp);
void LogAccess(const void* ptr, uint32_t bytes, RequestKind kind, Site site);
/// Wavefronts of a shared request and the fewest it could take; sectors of a global one.
void SharedCost(uint32_t bytes_per_lane, const LaneAccess* lanes, int count, uint32_t* cost,
                uint32_t* ideal);
void GlobalCost(const LaneAccess* lanes, int count, uint32_t* cost, uint32_t* ideal);

}  // namespace lowrank::emu
