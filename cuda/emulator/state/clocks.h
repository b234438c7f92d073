/// Happens-before in check mode: vector clocks with one component a warp.
///
/// An event (an access) carries the clock of its warp. Within a warp, lanes are ordered by
/// __syncwarp and barriers alone; between warps and blocks, by what has been released and acquired.
/// One lane's release publishes its own accesses and those of its warp up to the last meeting of
/// the warp; one lane's acquire counts for its whole warp (which may hide a race inside the warp).
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "cuda/emulator/runtime.h"

namespace lowrank::emu {

/// Known of a warp: every event up to `all`, and those up to `some` of the lanes `lanes`.
struct Known {
  uint32_t all = 0;
  uint32_t some = 0;
  uint32_t lanes = 0;

  void Join(const Known& other);
  bool Covers(uint32_t clock, uint32_t lane) const {
    return clock <= all || (clock <= some && (lanes >> lane & 1) != 0);
  }
};

/// By warp, of one block instance.
using BlockKnown = std::vector<Known>;
/// By block instance.
using ClockMap = std::map<uint32_t, BlockKnown>;

void JoinBlock(BlockKnown* into, const BlockKnown& from);

struct WarpClock {
  uint32_t now = 1;
  uint32_t ordered = 1;              // events before this are ordered before all lanes of the warp
  BlockKnown own;                    // the warps of this block
  std::shared_ptr<ClockMap> others;  // of other blocks; shared between warps, copied to be changed

  void Reset(uint32_t warps) {
    now = 1;
    ordered = 1;
    own.assign(warps, Known());
    others.reset();
  }
  /// The whole warp has met.
  void Meet() { ordered = ++now; }
};

/// What has been released into an object.
struct ClockState {
  ClockMap blocks;

  void Clear() { blocks.clear(); }
  void Join(const ClockState& other);
  /// From lane `lane` of warp `warp` of block `instance`. `bump`: what the warp does later is not
  /// part of it.
  void ReleaseFrom(WarpClock* clock, uint32_t instance, uint32_t warp, uint32_t lane, bool bump);
  void AcquireInto(WarpClock* clock, uint32_t instance) const;
};

/// Who releases or acquires.
struct ClockOwner {
  WarpClock* clock;
  uint32_t instance;  // of its block
  uint32_t cluster;   // the instance of its cluster's first block
  uint32_t warp;
  uint32_t lane;
  bool alone;  // the cluster is this block
};

/// A ClockState by scope: a release joins what each group of threads may see of it, an acquire
/// takes what its own scope reaches.
class ScopedClock {
 public:
  void Release(const ClockOwner& owner, Scope scope);
  /// Something released before, by the owner: at this scope.
  void Release(const ClockOwner& owner, const ClockState& state, Scope scope);
  void Acquire(const ClockOwner& owner, Scope scope) const;
  void Join(const ScopedClock& other);

 private:
  template <typename Into>
  void ForEachGroup(const ClockOwner& owner, Scope scope, Into into);

  ClockState device_;
  std::map<uint32_t, ClockState> clusters_;  // by the instance of the first block
  std::map<uint32_t, ClockState> blocks_;    // by instance
};

}  // namespace lowrank::emu
