/// The rendezvous of a warp's lanes, and the shuffles, votes and reductions on top of it.
#include "cuda/emulator/state/scheduler.h"

namespace lowrank::emu {
namespace {

uint32_t Lowest(uint32_t lanes) { return static_cast<uint32_t>(__builtin_ctz(lanes)); }

/// body(lane) for each lane of the mask, lowest first.
template <typename Body>
void ForEachLane(uint32_t mask, const Body& body) {
  for (; mask != 0; mask &= mask - 1) body(Lowest(mask));
}

/// Runs the collective that waits for `mask` if all of its living lanes are there.
bool TryFire(BlockState* block, Warp* warp, uint32_t mask, CollectiveFn fn) {
  const uint32_t lanes = mask & warp->alive;
  if (lanes == 0 || (warp->waiting & lanes) != lanes) return false;
  for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) {
    const Fiber& other = warp->lanes[Lowest(rest)];
    if (other.collective != fn || other.mask != mask) return false;
  }
  worker->Progress();
  fn(lanes, warp->args);
  warp->waiting &= ~lanes;
  worker->SetRunnable(warp, block, lanes);
  return true;
}

void CheckAligned(Warp* warp, Fiber* fiber, CollectiveFn fn, const char* what, Site site) {
  if (warp->alive != kAllLanes) {
    Fail("divergent-warp", site, "%s (.aligned) with only lanes %08x of warp %u alive", what,
         warp->alive, warp->index);
  }
  if (warp->waiting == 0) return;
  const Fiber& other = warp->lanes[Lowest(warp->waiting)];
  if (other.aligned && (other.collective != fn || !(other.site == site))) {
    Report("divergent-warp", site, other.site,
           "%s (.aligned) by lane %u of warp %u while lane %u waits in %s", what, fiber->lane,
           warp->index, other.lane, other.what);
    worker->Abandon();
  }
}

}  // namespace

void Collective(CollectiveFn fn, uint32_t mask, void* arg, const char* what, Site site,
                bool aligned) {
  Fiber* fiber = CurrentFiber();
  Warp* warp = fiber->warp_state;
  BlockState* block = fiber->block_state;
  const uint32_t bit = uint32_t{1} << fiber->lane;
  if (__builtin_expect((mask & bit) == 0, 0)) {
    Fail("inactive-lane", site, "%s: lane %u is not in its own mask %08x", what, fiber->lane, mask);
  }
  if (aligned && __builtin_expect(warp->alive != kAllLanes || warp->waiting != 0, 1)) {
    CheckAligned(warp, fiber, fn, what, site);
  }
  fiber->collective = fn;
  fiber->mask = mask;
  fiber->what = what;
  fiber->site = site;
  fiber->aligned = aligned;
  warp->args[fiber->lane] = arg;
  warp->waiting |= bit;
  worker->ClearRunnable(warp, block, bit);
  const uint32_t lanes = mask & warp->alive;
  if ((warp->waiting & lanes) == lanes && TryFire(block, warp, mask, fn)) {
    if (worker->random_order) worker->Reschedule();
    return;
  }
  worker->Reschedule();
}

void LeaveWarp(Fiber* fiber) {
  Warp* warp = fiber->warp_state;
  BlockState* block = fiber->block_state;
  const uint32_t bit = uint32_t{1} << fiber->lane;
  worker->Progress();
  warp->alive &= ~bit;
  worker->ClearRunnable(warp, block, bit);
  --block->live;
  if (warp->alive == 0 && running->counters) FlushLogs(block, warp);
  // Those who wait do so for a mask that may have held this lane.
  uint32_t rest = warp->waiting;
  while (rest != 0) {
    const Fiber& other = warp->lanes[Lowest(rest)];
    rest &= ~other.mask;
    if ((other.mask & bit) == 0) continue;
    if (other.aligned) {
      Report("divergent-warp", other.site, Site(),
             "%s (.aligned): lane %u of warp %u exits while lane %u waits in it", other.what,
             fiber->lane, warp->index, other.lane);
      worker->Abandon();
    }
    TryFire(block, warp, other.mask, other.collective);
  }
}

namespace {

void SyncWarpFn(uint32_t mask, void** args) {
  auto* warp = static_cast<Warp*>(args[Lowest(mask)]);
  if (!observing) return;
  if (running->counters) FlushLogs(warp->lanes->block_state, warp);
  if (running->check) warp->clock.Meet();
}

struct ShuffleArg {
  uint64_t value;
  int32_t select;
  int32_t width;
  ShuffleMode mode;
  Site site;
  uint64_t result;
};

/// A lane reads one that is not there: it is not in the mask, or has exited.
void ReportSource(Site site, uint32_t lane, int32_t source) {
  const uint32_t asked = CurrentFiber()->warp_state->lanes[lane].mask;
  if ((asked >> source & 1u) != 0) {
    Report("inactive-lane", site, Site(),
           "shfl.sync: lane %u reads lane %d, which is in the mask %08x but has exited", lane,
           source, asked);
  } else {
    Report("inactive-lane", site, Site(),
           "shfl.sync: lane %u reads lane %d, which is not in the mask %08x", lane, source, asked);
  }
}

void ShuffleFn(uint32_t mask, void** args) {
  ForEachLane(mask, [&](uint32_t lane) {
    auto* arg = static_cast<ShuffleArg*>(args[lane]);
    const auto self = static_cast<int32_t>(lane);
    const int32_t segment = self & ~(arg->width - 1);
    int32_t source = self;
    switch (arg->mode) {
      case ShuffleMode::kIndex:
        source = segment + (arg->select & (arg->width - 1));
        break;
      case ShuffleMode::kUp:
        source = self - arg->select;
        if (source < segment) source = self;
        break;
      case ShuffleMode::kDown:
        source = self + arg->select;
        if (source >= segment + arg->width) source = self;
        break;
      case ShuffleMode::kXor:
        source = self ^ arg->select;
        if (source >= segment + arg->width) source = self;
        break;
    }
    source &= 31;
    if ((mask >> source & 1u) == 0) {
      ReportSource(arg->site, lane, source);
      arg->result = 0xdeadbeefdeadbeefull;
    } else {
      arg->result = static_cast<ShuffleArg*>(args[source])->value;
    }
  });
}

struct ShufflePtxArg {
  uint32_t value;
  uint32_t select;
  uint32_t control;
  ShuffleMode mode;
  Site site;
  uint32_t result;
  bool in_range;
};

/// The pseudo-code of the PTX manual, shfl.sync.
void ShufflePtxFn(uint32_t mask, void** args) {
  ForEachLane(mask, [&](uint32_t lane) {
    auto* arg = static_cast<ShufflePtxArg*>(args[lane]);
    const uint32_t select = arg->select & 31u;
    const uint32_t clamp = arg->control & 31u;
    const uint32_t segment_mask = arg->control >> 8 & 31u;
    const uint32_t max_lane = (lane & segment_mask) | (clamp & ~segment_mask);
    const uint32_t min_lane = lane & segment_mask;
    int32_t source = 0;
    switch (arg->mode) {
      case ShuffleMode::kUp:
        source = static_cast<int32_t>(lane) - static_cast<int32_t>(select);
        arg->in_range = source >= static_cast<int32_t>(max_lane);
        break;
      case ShuffleMode::kDown:
        source = static_cast<int32_t>(lane + select);
        arg->in_range = source <= static_cast<int32_t>(max_lane);
        break;
      case ShuffleMode::kXor:
        source = static_cast<int32_t>(lane ^ select);
        arg->in_range = source <= static_cast<int32_t>(max_lane);
        break;
      case ShuffleMode::kIndex:
        source = static_cast<int32_t>(min_lane | (select & ~segment_mask));
        arg->in_range = source <= static_cast<int32_t>(max_lane);
        break;
    }
    if (!arg->in_range) source = static_cast<int32_t>(lane);
    if ((mask >> source & 1) == 0) {
      ReportSource(arg->site, lane, source);
      arg->result = 0xdeadbeefu;
    } else {
      arg->result = static_cast<ShufflePtxArg*>(args[source])->value;
    }
  });
}

struct BallotArg {
  bool predicate;
  uint32_t result;
};

void BallotFn(uint32_t mask, void** args) {
  uint32_t result = 0;
  ForEachLane(mask, [&](uint32_t lane) {
    if (static_cast<BallotArg*>(args[lane])->predicate) result |= uint32_t{1} << lane;
  });
  ForEachLane(mask, [&](uint32_t lane) { static_cast<BallotArg*>(args[lane])->result = result; });
}

struct MatchArg {
  uint64_t value;
  uint32_t result;
};

void MatchFn(uint32_t mask, void** args) {
  ForEachLane(mask, [&](uint32_t lane) {
    auto* arg = static_cast<MatchArg*>(args[lane]);
    arg->result = 0;
    ForEachLane(mask, [&](uint32_t other) {
      if (static_cast<MatchArg*>(args[other])->value == arg->value) {
        arg->result |= uint32_t{1} << other;
      }
    });
  });
}

struct ReduceArg {
  uint32_t value;
  ReduceOp op;
  uint32_t result;
};

uint32_t Combine(ReduceOp op, uint32_t a, uint32_t b) {
  const auto sa = static_cast<int32_t>(a);
  const auto sb = static_cast<int32_t>(b);
  switch (op) {
    case ReduceOp::kAdd:
      return a + b;
    case ReduceOp::kMinS:
      return sa < sb ? a : b;
    case ReduceOp::kMaxS:
      return sa > sb ? a : b;
    case ReduceOp::kMinU:
      return a < b ? a : b;
    case ReduceOp::kMaxU:
      return a > b ? a : b;
    case ReduceOp::kAnd:
      return a & b;
    case ReduceOp::kOr:
      return a | b;
    case ReduceOp::kXor:
      return a ^ b;
  }
  return 0;
}

void ReduceFn(uint32_t mask, void** args) {
  const uint32_t first = Lowest(mask);
  const auto* head = static_cast<ReduceArg*>(args[first]);
  uint32_t result = head->value;
  ForEachLane(mask & (mask - 1), [&](uint32_t lane) {
    result = Combine(head->op, result, static_cast<ReduceArg*>(args[lane])->value);
  });
  ForEachLane(mask, [&](uint32_t lane) { static_cast<ReduceArg*>(args[lane])->result = result; });
}

}  // namespace

void SyncWarp(uint32_t mask, Site site) {
  Collective(SyncWarpFn, mask, CurrentFiber()->warp_state, "bar.warp.sync", site, false);
}

uint32_t ActiveMask() {
  const Warp& warp = *CurrentFiber()->warp_state;
  return warp.runnable;
}

uint64_t Shuffle(uint32_t mask, uint64_t value, int32_t select, int32_t width, ShuffleMode mode,
                 Site site) {
  ShuffleArg arg{value, select, width, mode, site, 0};
  Collective(ShuffleFn, mask, &arg, "shfl.sync", site, false);
  return arg.result;
}

uint32_t ShufflePtx(uint32_t mask, uint32_t value, uint32_t select, uint32_t clamp_and_segment,
                    ShuffleMode mode, bool* in_range, Site site) {
  ShufflePtxArg arg{value, select, clamp_and_segment, mode, site, 0, false};
  Collective(ShufflePtxFn, mask, &arg, "shfl.sync", site, false);
  if (in_range != nullptr) *in_range = arg.in_range;
  return arg.result;
}

uint32_t Ballot(uint32_t mask, bool predicate, Site site) {
  BallotArg arg{predicate, 0};
  Collective(BallotFn, mask, &arg, "vote.sync", site, false);
  return arg.result;
}

uint32_t MatchAny(uint32_t mask, uint64_t value, Site site) {
  MatchArg arg{value, 0};
  Collective(MatchFn, mask, &arg, "match.any.sync", site, false);
  return arg.result;
}

uint32_t Reduce(uint32_t mask, uint32_t value, ReduceOp op, Site site) {
  ReduceArg arg{value, op, 0};
  Collective(ReduceFn, mask, &arg, "redux.sync", site, false);
  return arg.result;
}

void SpinYield(const char* what, Site site) {
  Fiber* fiber = CurrentFiber();
  fiber->what = what;
  fiber->site = site;
  worker->SetSpinning(fiber);
  worker->Reschedule();
}

void Park(const char* what, Site site) {
  Fiber* fiber = CurrentFiber();
  fiber->what = what;
  fiber->site = site;
  fiber->parked = true;
  worker->ClearRunnable(fiber->warp_state, fiber->block_state, uint32_t{1} << fiber->lane);
  worker->Reschedule();
}

void Wake(Thread* thread) {
  auto* fiber = static_cast<Fiber*>(thread);
  if (!fiber->parked) return;
  fiber->parked = false;
  worker->Progress();
  worker->SetRunnable(fiber->warp_state, fiber->block_state, uint32_t{1} << fiber->lane);
}

uint64_t Random() { return worker->NextRandom(); }

}  // namespace lowrank::emu
