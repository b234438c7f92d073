/// Findings between being made (on a fiber) and being told (after the launch).
#pragma once

namespace lowrank::emu {

/// Resolves, prints and stores what was found since the last call. Was there anything?
bool FlushFindings(const char* kernel);

}  // namespace lowrank::emu
