/// Is fence.proxy.async on the way from an ordinary write to the copy or matrix engine?
///
/// It may be executed by the thread that wrote, after the write, or by the thread that starts the
/// engine, after it has seen the write: what a thread knew at its last fence is kept.
#include <unordered_map>

#include "cuda/emulator/state/memory.h"
#include "cuda/emulator/state/scheduler.h"

namespace lowrank::emu {
namespace {

/// The last fence of a thread.
struct ProxyFence {
  uint32_t count = 0;  // its fences so far
  uint32_t warp = 0;
  WarpClock clock;
};

uint64_t ThreadKey(uint32_t instance, uint32_t thread) {
  return static_cast<uint64_t>(instance) << 16 | thread;
}

std::unordered_map<uint64_t, ProxyFence>& LastFences() {
  static auto* fences = new std::unordered_map<uint64_t, ProxyFence>;
  return *fences;
}

/// Had the thread of block `instance` that fenced seen the event?
bool Saw(const ProxyFence& fence, uint32_t instance, const Access1& event) {
  const WarpClock& clock = fence.clock;
  if (event.instance == instance) {
    return (event.warp() == fence.warp && event.clock < clock.ordered) ||
           clock.own[event.warp()].Covers(event.clock, event.lane());
  }
  if (clock.others == nullptr) return false;
  const auto found = clock.others->find(event.instance);
  return found != clock.others->end() && event.warp() < found->second.size() &&
         found->second[event.warp()].Covers(event.clock, event.lane());
}

bool Unfenced(const Cell& cell) {
  if (cell.write.instance < running->first_instance || (cell.flags & kCellByCopy) != 0) {
    return false;
  }
  const auto& fences = LastFences();
  const auto writers = fences.find(ThreadKey(cell.write.instance, cell.write.thread));
  const uint32_t since = writers == fences.end() ? 0 : writers->second.count;
  if (static_cast<uint16_t>(since) != cell.fences) return false;
  const uint32_t instance = current->block->instance;
  const auto ours = fences.find(ThreadKey(instance, current->warp * kWarpSize + current->lane));
  return ours == fences.end() || !Saw(ours->second, instance, cell.write);
}

}  // namespace

void ForgetProxyFences() { LastFences().clear(); }

void NoteProxyFence() {
  ++current->proxy_fences;
  if (!running->check) return;
  const Fiber* fiber = CurrentFiber();
  LastFences()[ThreadKey(fiber->block->instance, fiber->warp * kWarpSize + fiber->lane)] = {
      current->proxy_fences, fiber->warp, fiber->warp_state->clock};
}

bool UnfencedWrite(const void* ptr, size_t bytes, Site* writer) {
  const auto address = reinterpret_cast<uintptr_t>(ptr);
  ShadowMemory* shadow = ShadowOf(address);
  if (shadow == nullptr) return false;
  const Cell* youngest = nullptr;
  const auto look = [&](const Cell& cell) {
    if (!Unfenced(cell)) return;
    if (youngest == nullptr || youngest->write.clock < cell.write.clock) youngest = &cell;
  };
  for (uintptr_t at = address & ~uintptr_t{3}; at < address + bytes; at += 4) {
    Cell* cell = shadow->At(shadow->Word(at));
    if ((cell->flags & kCellSplit) == 0) {
      look(*cell);
      continue;
    }
    const std::array<Cell, 4>& split = *shadow->Split(cell);
    for (uintptr_t i = 0; i < 4; ++i) {
      if (at + i >= address && at + i < address + bytes) look(split[i]);
    }
  }
  if (youngest == nullptr) return false;
  *writer = InternedSite(youngest->write.site);
  return true;
}

}  // namespace lowrank::emu
