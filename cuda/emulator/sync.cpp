/// Release and acquire in check mode: what orders the accesses of one warp before those of another.
#include <unordered_map>

#include "cuda/emulator/memory.h"
#include "cuda/emulator/scheduler.h"

namespace lowrank::emu {
namespace {

/// Words in memory that carry release and acquire, of this launch.
std::unordered_map<uintptr_t, ClockState>& SyncWords() {
  static auto* words = new std::unordered_map<uintptr_t, ClockState>;
  return *words;
}

}  // namespace

void BeginChecks() {
  SyncWords().clear();
  ForgetProxyFences();
}

void NoteRelease(const void* ptr, Site) {
  worker->Progress();
  if (!running->check) return;
  Fiber* fiber = CurrentFiber();
  SyncWords()[reinterpret_cast<uintptr_t>(ptr)].ReleaseFrom(
      &fiber->warp_state->clock, fiber->block->instance, fiber->warp, fiber->lane, true);
}

void NoteAcquire(const void* ptr, Site) {
  if (!running->check) return;
  Fiber* fiber = CurrentFiber();
  const auto found = SyncWords().find(reinterpret_cast<uintptr_t>(ptr));
  if (found == SyncWords().end()) return;
  found->second.AcquireInto(&fiber->warp_state->clock, fiber->block->instance);
}

uint32_t LoadAcquire(const uint32_t* ptr, Site site) {
  Fiber* fiber = CurrentFiber();
  if (fiber->acquired_from == ptr) SpinYield("ld.acquire", site);
  if (observing) AccessSlow(ptr, 4, AccessKind::kAtomicLoad, site);
  const uint32_t value = __atomic_load_n(ptr, __ATOMIC_ACQUIRE);
  if (fiber->acquired_from != ptr || fiber->acquired_value != value) worker->Progress();
  fiber->acquired_from = ptr;
  fiber->acquired_value = value;
  NoteAcquire(ptr, site);
  return value;
}

void StoreRelease(uint32_t* ptr, uint32_t value, Site site) {
  NoteRelease(ptr, site);
  if (observing) AccessSlow(ptr, 4, AccessKind::kAtomicStore, site);
  __atomic_store_n(ptr, value, __ATOMIC_RELEASE);
}

void Fence() {
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
  CurrentFiber()->fenced = true;
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

void AtomicBegin(const void* ptr, uint32_t bytes, Site site) {
  worker->Progress();
  if (!observing) return;
  if (running->check && CurrentFiber()->fenced) NoteRelease(ptr, site);
  AccessSlow(ptr, bytes, AccessKind::kAtomic, site);
}

void AtomicEnd(const void* ptr, Site site) {
  if (observing && running->check && CurrentFiber()->fenced) NoteAcquire(ptr, site);
}

// -------------------------------------------------------------------------------- for extensions

struct SyncClock::State {
  ClockState clock;
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
void SyncClock::Release() {
  worker->Progress();
  if (!running->check) return;
  if (state_ == nullptr) state_ = new State;
  Fiber* fiber = CurrentFiber();
  state_->clock.ReleaseFrom(&fiber->warp_state->clock, fiber->block->instance, fiber->warp,
                            fiber->lane, true);
}
void SyncClock::Acquire() const {
  if (!running->check || state_ == nullptr) return;
  Fiber* fiber = CurrentFiber();
  state_->clock.AcquireInto(&fiber->warp_state->clock, fiber->block->instance);
}
void SyncClock::Join(const SyncClock& other) {
  if (other.state_ == nullptr) return;
  if (state_ == nullptr) state_ = new State;
  state_->clock.Join(other.state_->clock);
}

}  // namespace lowrank::emu
