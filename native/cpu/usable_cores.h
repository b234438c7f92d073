/// How many cores this process may keep busy.
#pragma once

#include <string>

namespace lowrank::cpu {

/// The number of cores that the scheduler lets this thread use (affinity), at most the quota of any
/// control group above it (v2: cpu.max, v1: cpu.cfs_quota_us), rounded down; at least 1. A thread
/// beyond the quota stops the whole group until the next period. `root` is prepended to /proc and
/// /sys, for tests.
int UsableCores(const std::string& root = "");

}  // namespace lowrank::cpu
