/// How many cores this process may keep busy.
#pragma once

#include <string>

namespace lowrank::cpu {

/// Cores that the scheduler lets this thread run on (affinity), and no more than the quota of any
/// control group above it allows (v2: cpu.max, v1: cpu.cfs_quota_us), rounded down; at least 1. A
/// thread beyond the quota has the whole group stopped until the next period. `root` is put in
/// front of /proc and /sys, for tests.
int UsableCores(const std::string& root = "");

}  // namespace lowrank::cpu
