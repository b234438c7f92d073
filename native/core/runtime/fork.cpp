#include "native/core/runtime/fork.h"

#include <pthread.h>

#include <atomic>
#include <string>
#include <vector>

namespace lowrank {
namespace {

std::atomic<uint32_t> g_generation{0};

/// What is locked during a fork. Never destroyed.
struct Held {
  std::mutex mutex;
  std::vector<std::mutex*> mutexes;
};

Held& TheHeld() {
  static Held* const held = new Held();
  return *held;
}

void LockAll() {
  Held& held = TheHeld();
  held.mutex.lock();
  for (std::mutex* mutex : held.mutexes) mutex->lock();
}

void UnlockAll() {
  Held& held = TheHeld();
  for (auto mutex = held.mutexes.rbegin(); mutex != held.mutexes.rend(); ++mutex) {
    (*mutex)->unlock();
  }
  held.mutex.unlock();
}

void StartChild() {
  UnlockAll();
  g_generation.fetch_add(1, std::memory_order_relaxed);
}

void Register() {
  static const int registered = pthread_atfork(LockAll, UnlockAll, StartChild);
  static_cast<void>(registered);
}

}  // namespace

uint32_t ForkGeneration() {
  Register();
  return g_generation.load(std::memory_order_relaxed);
}

void HoldAcrossForks(std::mutex* mutex) {
  Register();
  Held& held = TheHeld();
  const std::lock_guard<std::mutex> lock(held.mutex);
  held.mutexes.push_back(mutex);
}

Status ForkMark::Check(const char* device) const {
  if (!orphaned()) return Status();
  return Status(Code::kDevice,
                std::string("device: '") + device +
                    "' was started before this process was forked, and its threads stayed in the "
                    "parent: use it there, or start a new program instead (child_process)");
}

}  // namespace lowrank
