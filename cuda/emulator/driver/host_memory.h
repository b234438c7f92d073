/// Pinned host memory, which copies read and write when their turn comes and kernels may use.
#pragma once

#include <cstddef>

namespace lowrank::emu::driver {

/// Null where there is no memory.
void* AllocatePinned(size_t bytes);
/// False: not the start of such memory.
bool FreePinned(void* pointer);
/// Ordinary memory, treated like it from here on. False where some of it is pinned already.
bool PinExisting(void* pointer, size_t bytes);
/// False: not the start of memory that PinExisting pinned.
bool UnpinExisting(void* pointer);
/// Do all these bytes lie in one allocation?
bool IsPinned(const void* pointer, size_t bytes);

}  // namespace lowrank::emu::driver
