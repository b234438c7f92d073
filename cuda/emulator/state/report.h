/// Findings between being made (on a fiber) and being told (after the launch).
#pragma once

#include <vector>

#include "cuda/emulator/runtime.h"

namespace lowrank::emu {

/// Resolves, prints and stores what was found since the last call. Was there anything?
bool FlushFindings(const char* kernel);
/// Looks up many sites at once, for the Resolve() calls that follow.
void ResolveAll(const std::vector<Site>& sites);

}  // namespace lowrank::emu
