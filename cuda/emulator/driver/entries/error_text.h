#pragma once

namespace lowrank::emu::driver {

/// Null for a number that is no CUresult.
const char* ErrorName(int result);
/// The same in words.
const char* ErrorText(int result);

}  // namespace lowrank::emu::driver
