#include "native/core/runtime/fork.h"

#include <pthread.h>

#include <atomic>
#include <string>

namespace lowrank {
namespace {

std::atomic<uint32_t> g_generation{0};

}  // namespace

uint32_t ForkGeneration() {
  static const int registered = pthread_atfork(
      nullptr, nullptr, [] { g_generation.fetch_add(1, std::memory_order_relaxed); });
  static_cast<void>(registered);
  return g_generation.load(std::memory_order_relaxed);
}

Status ForkMark::Check(const char* device) const {
  if (!orphaned()) return Status();
  return Status(Code::kDevice,
                std::string("device: '") + device +
                    "' was started before this process was forked, and its threads stayed in the "
                    "parent: use it there, or start a new program instead (child_process)");
}

}  // namespace lowrank
