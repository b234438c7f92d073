/// Release and acquire in check mode: what orders the accesses of one warp before those of another.
#include <algorithm>
#include <unordered_map>
#include <utility>

#include "cuda/emulator/state/memory.h"
#include "cuda/emulator/state/scheduler.h"

namespace lowrank::emu {
namespace {

/// Words in memory that carry release and acquire, of this launch.
std::unordered_map<uintptr_t, ScopedClock>& SyncWords() {
  static auto* words = new std::unordered_map<uintptr_t, ScopedClock>;
  return *words;
}

/// Of a fence or an atomic wider than a block.
size_t IndexOf(Scope scope) { return scope == Scope::kDevice ? 1 : 0; }

}  // namespace

ClockOwner CurrentOwner() {
  const Fiber* fiber = CurrentFiber();
  return {&fiber->warp_state->clock,
          fiber->block->instance,
          fiber->block_state->cluster_first->instance,
          fiber->warp,
          fiber->lane,
          fiber->block->cluster_size == 1};
}

void BeginChecks() {
  SyncWords().clear();
  ForgetProxyFences();
}

void NoteRelease(const void* ptr, Site, Scope scope) {
  worker->Progress();
  if (!running->check) return;
  SyncWords()[reinterpret_cast<uintptr_t>(ptr)].Release(CurrentOwner(), scope);
}

void NoteAcquire(const void* ptr, Site, Scope scope) {
  if (!running->check) return;
  const auto found = SyncWords().find(reinterpret_cast<uintptr_t>(ptr));
  if (found != SyncWords().end()) found->second.Acquire(CurrentOwner(), scope);
}

uint32_t LoadAcquire(const uint32_t* ptr, Site site, Scope scope) {
  Fiber* fiber = CurrentFiber();
  if (fiber->acquired_from == ptr) SpinYield("ld.acquire", site);
  if (observing) AccessSlow(ptr, 4, AccessKind::kAtomicLoad, site, scope);
  const uint32_t value = __atomic_load_n(ptr, __ATOMIC_ACQUIRE);
  if (fiber->acquired_from != ptr || fiber->acquired_value != value) worker->Progress();
  fiber->acquired_from = ptr;
  fiber->acquired_value = value;
  NoteAcquire(ptr, site, scope);
  return value;
}

void StoreRelease(uint32_t* ptr, uint32_t value, Site site, Scope scope) {
  NoteRelease(ptr, site, scope);
  if (observing) AccessSlow(ptr, 4, AccessKind::kAtomicStore, site, scope);
  __atomic_store_n(ptr, value, __ATOMIC_RELEASE);
}

void Fence(Scope scope) {
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
  Fiber* fiber = CurrentFiber();
  fiber->last_fence = scope;
  fiber->fenced = std::max(fiber->fenced, scope);
  if (!running->check || scope < Scope::kCluster) return;
  auto state = std::make_unique<ClockState>();
  state->ReleaseFrom(&fiber->warp_state->clock, fiber->block->instance, fiber->warp, fiber->lane,
                     true);
  fiber->at_fence[IndexOf(scope)] = std::move(state);
}

void GridDependencyWait() {
  Fiber* fiber = CurrentFiber();
  fiber->waited_for_grids = true;
  running->waited_for_grids.store(true, std::memory_order_relaxed);
  BlockState* block = fiber->block_state;
  if (!running->check || block->grid_wait.instance != 0) return;
  block->grid_wait.instance = block->instance;
  block->grid_wait.clock = fiber->warp_state->clock.now;
  block->grid_wait.thread = static_cast<uint16_t>(fiber->warp * kWarpSize + fiber->lane);
}

void AtomicBegin(const void* ptr, uint32_t bytes, Site site, Scope scope) {
  worker->Progress();
  if (!observing) return;
  const Fiber* fiber = CurrentFiber();
  if (running->check && fiber->fenced != Scope::kNone) {
    NoteRelease(ptr, site, std::min(scope, fiber->last_fence));
    for (Scope wider : {Scope::kCluster, Scope::kDevice}) {
      if (wider <= fiber->last_fence || wider > fiber->fenced) continue;
      const ClockState* state = fiber->at_fence[IndexOf(wider)].get();
      if (state == nullptr) continue;  // there was none of this scope
      SyncWords()[reinterpret_cast<uintptr_t>(ptr)].Release(CurrentOwner(), *state,
                                                            std::min(scope, wider));
    }
  }
  AccessSlow(ptr, bytes, AccessKind::kAtomic, site, scope);
}

void AtomicEnd(const void* ptr, Site site, Scope scope) {
  if (!observing || !running->check) return;
  NoteAcquire(ptr, site, std::min(scope, CurrentFiber()->fenced));
}

// -------------------------------------------------------------------------------- for extensions

struct SyncClock::State {
  ScopedClock clock;
};

SyncClock::SyncClock() = default;
SyncClock::~SyncClock() { delete state_; }
SyncClock::SyncClock(const SyncClock& other)
    : state_(other.state_ == nullptr ? nullptr : new State(*other.state_)) {}
SyncClock& SyncClock::operator=(const SyncClock& other) {
  if (this == &other) return *this;
  delete state_;
  state_ = other.state_ == nullptr ? nullptr : new State(*other.state_);
  return *this;
}
void SyncClock::Clear() {
  delete state_;
  state_ = nullptr;
}
void SyncClock::Release(Scope scope) {
  worker->Progress();
  if (!running->check) return;
  if (state_ == nullptr) state_ = new State;
  state_->clock.Release(CurrentOwner(), scope);
}
void SyncClock::Acquire(Scope scope) const {
  if (!running->check || state_ == nullptr) return;
  state_->clock.Acquire(CurrentOwner(), scope);
}
void SyncClock::Join(const SyncClock& other) {
  if (other.state_ == nullptr) return;
  if (state_ == nullptr) state_ = new State;
  state_->clock.Join(other.state_->clock);
}

}  // namespace lowrank::emu
