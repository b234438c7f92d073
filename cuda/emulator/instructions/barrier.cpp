/// Barriers of a block (bar.sync, bar.arrive, bar.red) and of a cluster.
#include "cuda/emulator/state/scheduler.h"

namespace lowrank::emu {
namespace {

void ReleaseBarrier(BlockState* block, Barrier* barrier) {
  worker->Progress();
  barrier->results[static_cast<int>(BarrierOp::kOr)] = barrier->predicates != 0;
  barrier->results[static_cast<int>(BarrierOp::kAnd)] = barrier->predicates == barrier->expected;
  barrier->results[static_cast<int>(BarrierOp::kCount)] = static_cast<int>(barrier->predicates);
  for (uint32_t rest = barrier->warps; rest != 0; rest &= rest - 1) {
    const auto index = static_cast<uint32_t>(__builtin_ctz(rest));
    Warp& warp = block->warp_states[index];
    if (running->counters) FlushLogs(block, &warp);
    const uint32_t parked = barrier->parked[index];
    barrier->parked[index] = 0;
    if (parked == 0) continue;  // only arrived
    if (running->check) {
      barrier->clock.AcquireInto(&warp.clock, block->instance);
      warp.clock.Meet();
    }
    worker->SetRunnable(&warp, block, parked);
  }
  barrier->arrived = 0;
  barrier->predicates = 0;
  barrier->warps = 0;
  barrier->clock.Clear();
}

void Arrive(uint32_t id, uint32_t threads, bool predicate, bool wait, bool aligned,
            const char* what, Site site) {
  Fiber* fiber = CurrentFiber();
  BlockState* block = fiber->block_state;
  if (id >= kBarriers) Fail("barrier", site, "%s: there is no barrier %u", what, id);
  Barrier& barrier = block->barriers[id];
  const uint32_t expected = threads == 0 ? block->threads : threads;
  if (threads % kWarpSize != 0) {
    Fail("barrier", site, "%s %u: %u threads are no whole warps", what, id, threads);
  }
  const uint32_t bit = uint32_t{1} << fiber->lane;
  const uint32_t warp_bit = uint32_t{1} << fiber->warp;
  fiber->what = what;
  fiber->site = site;
  if (barrier.arrived == 0) {
    barrier.expected = expected;
    barrier.site = site;
    barrier.whole_block = threads == 0;
    barrier.aligned = aligned;
  } else if (barrier.expected != expected) {
    Report("barrier", site, barrier.site, "%s %u: for %u threads, others came for %u", what, id,
           expected, barrier.expected);
    worker->Abandon();
  } else if (aligned && barrier.aligned && threads == 0 && barrier.whole_block &&
             !(barrier.site == site)) {
    Report("divergent-barrier", site, barrier.site,
           "%s %u: threads of a block wait at different places", what, id);
  }
  if ((barrier.warps & warp_bit) == 0) {
    barrier.warps |= warp_bit;
    barrier.warp_site[fiber->warp] = site;
  } else if (aligned && !(barrier.warp_site[fiber->warp] == site)) {
    Report("divergent-barrier", site, barrier.warp_site[fiber->warp],
           "%s %u (.aligned): lanes of a warp wait at different places", what, id);
  }
  if (running->check) {
    barrier.clock.ReleaseFrom(&fiber->warp_state->clock, block->instance, fiber->warp, fiber->lane,
                              !wait);
  }
  if (predicate) ++barrier.predicates;
  ++barrier.arrived;
  if (wait) barrier.parked[fiber->warp] |= bit;
  if (barrier.arrived == expected) {
    if (running->counters)
      Count("barrier", static_cast<uint64_t>(__builtin_popcount(barrier.warps)));
    ReleaseBarrier(block, &barrier);
    if (worker->random_order) worker->Reschedule();
    return;
  }
  if (!wait) return;
  worker->ClearRunnable(fiber->warp_state, block, bit);
  worker->Reschedule();
}

}  // namespace

void BarrierSync(uint32_t id, uint32_t threads, Site site, bool aligned) {
  Arrive(id, threads, false, true, aligned, "bar.sync", site);
}

void BarrierArrive(uint32_t id, uint32_t threads, Site site) {
  Arrive(id, threads, false, false, true, "bar.arrive", site);
}

int BarrierReduce(BarrierOp op, int predicate, Site site) {
  Arrive(0, 0, predicate != 0, true, true, "bar.red", site);
  return CurrentFiber()->block_state->barriers[0].results[static_cast<int>(op)];
}

void ClusterArrive(Site site, bool relaxed) {
  Fiber* fiber = CurrentFiber();
  BlockState* first = fiber->block_state->cluster_first;
  if (first->cluster_ticket.size() < first->cluster_threads) {
    first->cluster_ticket.assign(first->cluster_threads, 0);
  }
  const uint32_t index = fiber->block->cluster_rank * fiber->block->threads + fiber->linear;
  if (first->cluster_ticket[index] > first->cluster_phase) {
    Fail("barrier", site, "barrier.cluster.arrive twice without a wait");
  }
  first->cluster_ticket[index] = first->cluster_phase + 1;
  worker->Progress();
  if (running->check && !relaxed) {
    first->cluster_clock.ReleaseFrom(&fiber->warp_state->clock, fiber->block->instance, fiber->warp,
                                     fiber->lane, true);
  }
  if (++first->cluster_arrived < first->cluster_threads) return;
  first->cluster_arrived = 0;
  ++first->cluster_phase;
  first->cluster_clock_done = first->cluster_clock;
  first->cluster_clock.Clear();
  std::vector<Fiber*> waiters;
  waiters.swap(first->cluster_waiters);
  for (Fiber* waiter : waiters) Wake(waiter);
}

void ClusterWait(Site site) {
  Fiber* fiber = CurrentFiber();
  BlockState* first = fiber->block_state->cluster_first;
  const uint32_t index = fiber->block->cluster_rank * fiber->block->threads + fiber->linear;
  if (index >= first->cluster_ticket.size() || first->cluster_ticket[index] == 0) {
    Fail("barrier", site, "barrier.cluster.wait without an arrive");
  }
  while (first->cluster_phase < first->cluster_ticket[index]) {
    first->cluster_waiters.push_back(fiber);
    Park("barrier.cluster.wait", site);
  }
  if (running->check) {
    first->cluster_clock_done.AcquireInto(&fiber->warp_state->clock, fiber->block->instance);
  }
}

void* MapShared(const void* s_ptr, uint32_t rank, Site site) {
  const auto address = reinterpret_cast<uintptr_t>(s_ptr);
  BlockState* block = CurrentFiber()->block_state;
  BlockState* from = worker->BlockOfShared(address);
  if (from == nullptr) Fail("oob-shared", site, "mapa: %p is not in shared memory", s_ptr);
  if (rank >= block->cluster_size) {
    Fail("oob-shared", site, "mapa: rank %u of a cluster of %u", rank, block->cluster_size);
  }
  BlockState* target = worker->resident()[block->cluster_first->resident_index + rank];
  return target->shared_window + (address - reinterpret_cast<uintptr_t>(from->shared_window));
}

}  // namespace lowrank::emu
