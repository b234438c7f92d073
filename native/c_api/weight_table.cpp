#include <mutex>
#include <unordered_map>
#include <utility>

#include "native/c_api/weights.h"
#include "native/core/runtime/fork.h"

namespace lowrank::c_api {
namespace {

struct Entry {
  std::shared_ptr<lowrank_weight> weight;
  int64_t references = 1;
};

/// Never destroyed: handles may be released while the process ends.
struct Table {
  std::mutex mutex;
  std::unordered_map<const lowrank_weight*, Entry> entries;
};

Table& TheTable() {
  static Table* const table = [] {
    auto* made = new Table();
    HoldAcrossForks(&made->mutex);
    return made;
  }();
  return *table;
}

Status RefuseHandle(const char* op, const char* operand, const lowrank_weight* weight) {
  return Refuse(Code::kType, op, operand, "a weight",
                weight == nullptr ? "NULL" : "an address that is no weight, or a released one");
}

}  // namespace

lowrank_weight* AddWeight(std::shared_ptr<lowrank_weight> weight) {
  Table& table = TheTable();
  lowrank_weight* const handle = weight.get();
  const std::lock_guard<std::mutex> lock(table.mutex);
  table.entries.emplace(handle, Entry{std::move(weight), 1});
  return handle;
}

Status FindWeight(const char* op, const char* operand, const lowrank_weight* weight,
                  std::shared_ptr<const lowrank_weight>* held) {
  Table& table = TheTable();
  {
    const std::lock_guard<std::mutex> lock(table.mutex);
    const auto found = table.entries.find(weight);
    if (found != table.entries.end()) {
      *held = found->second.weight;
      return Status();
    }
  }
  return RefuseHandle(op, operand, weight);
}

Status RetainWeight(const char* op, const lowrank_weight* weight) {
  Table& table = TheTable();
  {
    const std::lock_guard<std::mutex> lock(table.mutex);
    const auto found = table.entries.find(weight);
    if (found != table.entries.end()) {
      ++found->second.references;
      return Status();
    }
  }
  return RefuseHandle(op, "weight", weight);
}

Status ReleaseWeight(const char* op, const lowrank_weight* weight) {
  Table& table = TheTable();
  std::shared_ptr<lowrank_weight> last;  // freed without the lock: it calls the caller
  {
    const std::lock_guard<std::mutex> lock(table.mutex);
    const auto found = table.entries.find(weight);
    if (found != table.entries.end()) {
      if (--found->second.references > 0) return Status();
      last = std::move(found->second.weight);
      table.entries.erase(found);
    }
  }
  return last == nullptr ? RefuseHandle(op, "weight", weight) : Status();
}

int64_t LiveWeights() {
  Table& table = TheTable();
  const std::lock_guard<std::mutex> lock(table.mutex);
  return static_cast<int64_t>(table.entries.size());
}

}  // namespace lowrank::c_api
