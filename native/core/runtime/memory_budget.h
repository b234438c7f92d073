/// How much memory a device may hold: a limit that the user sets, checked before memory is taken.
#pragma once

#include <cstdint>
#include <limits>
#include <string>

#include "native/core/status.h"

namespace lowrank {

constexpr int64_t kNoMemoryBudget = std::numeric_limits<int64_t>::max();

/// LOWRANK_MEMORY_LIMIT: bytes, or a number with K, M, G or T, powers of 1024. kNoMemoryBudget
/// where it is unset or unreadable; lib/core/memory-budget.ts rejects the latter.
int64_t MemoryBudgetFromEnvironment();

/// kMemoryBudget, with the bytes that are needed and allowed, if `bytes` more do not fit.
Status CheckMemoryBudget(const std::string& device, int64_t live_bytes, size_t bytes,
                         int64_t budget_bytes);

/// What a device reports: its own memory, where known, but at most its budget.
int64_t WithinBudget(int64_t memory_bytes, int64_t budget_bytes);

}  // namespace lowrank
