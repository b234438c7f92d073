#include "native/core/runtime/memory_budget.h"

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>

namespace lowrank {

int64_t MemoryBudgetFromEnvironment() {
  const char* text = std::getenv("LOWRANK_MEMORY_LIMIT");
  if (text == nullptr || text[0] < '0' || text[0] > '9') return kNoMemoryBudget;
  char* end = nullptr;
  errno = 0;
  const long long number = std::strtoll(text, &end, 10);
  int shift = 0;
  if (*end != '\0') {
    constexpr char kUnits[] = "KMGT";
    const char* unit = std::strchr(kUnits, *end);
    if (unit == nullptr || end[1] != '\0') return kNoMemoryBudget;
    shift = 10 * static_cast<int>(unit - kUnits + 1);
  }
  if (errno != 0 || number > (kNoMemoryBudget >> shift)) return kNoMemoryBudget;
  return static_cast<int64_t>(number) << shift;
}

Status CheckMemoryBudget(const std::string& device, int64_t live_bytes, size_t bytes,
                         int64_t budget_bytes) {
  if (budget_bytes == kNoMemoryBudget) return Status();
  const auto left = static_cast<size_t>(std::max<int64_t>(0, budget_bytes - live_bytes));
  if (bytes <= left) return Status();
  return Refuse(Code::kMemoryBudget, device, "memory",
                "at most " + std::to_string(budget_bytes) +
                    " bytes, its budget (setMemoryBudget, LOWRANK_MEMORY_LIMIT)",
                std::to_string(live_bytes) + " live bytes and " + std::to_string(bytes) +
                    " more. Free tensors, use smaller batches or raise the budget");
}

int64_t WithinBudget(int64_t memory_bytes, int64_t budget_bytes) {
  if (budget_bytes == kNoMemoryBudget) return memory_bytes;
  return memory_bytes == 0 ? budget_bytes : std::min(memory_bytes, budget_bytes);
}

}  // namespace lowrank
