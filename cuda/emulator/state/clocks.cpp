#include "cuda/emulator/state/clocks.h"

#include <algorithm>

namespace lowrank::emu {

void Known::Join(const Known& other) {
  all = std::max(all, other.all);
  if (other.some > all) {
    // The union overstates the lane that was released earlier by what it did in between: silence
    // rather than a false alarm.
    lanes = some > all ? lanes | other.lanes : other.lanes;
    some = std::max(some, other.some);
  }
}

void JoinBlock(BlockKnown* into, const BlockKnown& from) {
  if (into->size() < from.size()) into->resize(from.size());
  for (size_t warp = 0; warp < from.size(); ++warp) (*into)[warp].Join(from[warp]);
}

void ClockState::Join(const ClockState& other) {
  for (const auto& [instance, known] : other.blocks) JoinBlock(&blocks[instance], known);
}

void ClockState::ReleaseFrom(WarpClock* clock, uint32_t instance, uint32_t warp, uint32_t lane,
                             bool bump) {
  BlockKnown& own = blocks[instance];
  JoinBlock(&own, clock->own);
  own[warp].Join(Known{clock->ordered - 1, clock->now, uint32_t{1} << lane});
  if (clock->others != nullptr) {
    for (const auto& [other, known] : *clock->others) JoinBlock(&blocks[other], known);
  }
  if (bump) ++clock->now;
}

void ClockState::AcquireInto(WarpClock* clock, uint32_t instance) const {
  bool unshared = false;
  for (const auto& [other, known] : blocks) {
    if (other == instance) {
      JoinBlock(&clock->own, known);
      continue;
    }
    if (!unshared) {
      clock->others = clock->others == nullptr ? std::make_shared<ClockMap>()
                                               : std::make_shared<ClockMap>(*clock->others);
      unshared = true;
    }
    JoinBlock(&(*clock->others)[other], known);
  }
}

template <typename Into>
void ScopedClock::ForEachGroup(const ClockOwner& owner, Scope scope, Into into) {
  if (scope == Scope::kNone) return;
  if (scope == Scope::kDevice) into(&device_);
  if (scope >= Scope::kCluster && !owner.alone) into(&clusters_[owner.cluster]);
  into(&blocks_[owner.instance]);
}

void ScopedClock::Release(const ClockOwner& owner, Scope scope) {
  ForEachGroup(owner, scope, [&](ClockState* state) {
    state->ReleaseFrom(owner.clock, owner.instance, owner.warp, owner.lane, false);
  });
  ++owner.clock->now;  // what the warp does later is not part of it
}

void ScopedClock::Release(const ClockOwner& owner, const ClockState& released, Scope scope) {
  ForEachGroup(owner, scope, [&](ClockState* state) { state->Join(released); });
}

void ScopedClock::Acquire(const ClockOwner& owner, Scope scope) const {
  if (scope == Scope::kNone) return;
  const auto take = [&](const std::map<uint32_t, ClockState>& groups, uint32_t key) {
    const auto found = groups.find(key);
    if (found != groups.end()) found->second.AcquireInto(owner.clock, owner.instance);
  };
  if (scope == Scope::kDevice) device_.AcquireInto(owner.clock, owner.instance);
  if (scope >= Scope::kCluster) take(clusters_, owner.cluster);
  take(blocks_, owner.instance);
}

void ScopedClock::Join(const ScopedClock& other) {
  device_.Join(other.device_);
  for (const auto& [cluster, state] : other.clusters_) clusters_[cluster].Join(state);
  for (const auto& [block, state] : other.blocks_) blocks_[block].Join(state);
}

}  // namespace lowrank::emu
