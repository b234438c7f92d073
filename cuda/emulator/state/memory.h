/// Device memory and where its shadow is.
#pragma once

#include <atomic>
#include <memory>

#include "cuda/emulator/state/shadow.h"

namespace lowrank::emu {

/// One allocation, or a range of the host.
struct Region {
  uintptr_t begin = 0;
  size_t bytes = 0;
  bool host = false;
  uintptr_t pages_begin = 0;
  size_t pages_bytes = 0;  // with the guard page
  ShadowMemory shadow;     // made at the first check
};

/// The region that holds the address; null: none.
Region* FindRegion(uintptr_t address);
/// The one that begins at or before it (to say how far past its end an address is).
Region* RegionBefore(uintptr_t address);
/// Makes its shadow; false where there is no memory for it.
bool EnsureShadow(Region* region);
/// Could the address belong to a region? Cheap, and may say yes for what is none.
bool MaybeGlobal(uintptr_t address);
/// In the range reserved for allocations.
bool InDeviceRange(uintptr_t address);

/// The shadow of shared or global memory that the running checks look after, or null.
ShadowMemory* ShadowOf(uintptr_t address);

/// Who read and wrote what, everywhere: gone. What is initialised stays.
void ForgetAccesses();
/// A launch begins: nothing is synchronised with it yet.
void BeginChecks();
void ForgetProxyFences();

}  // namespace lowrank::emu
