/// mbarrier: transaction barriers in shared memory.
#include <cstring>

#include "cuda/emulator/hopper/hopper_state.h"
#include "cuda/emulator/state/scheduler.h"

namespace lowrank::emu {
namespace {

uintptr_t AddressOf(uint32_t barrier, const char* what, Site site) {
  unsigned char* ptr = SharedClusterPointer(barrier, site);
  RequireShared(ptr, 8, what, site);
  const uintptr_t address = reinterpret_cast<uintptr_t>(ptr);
  if (address % 8 != 0) Fail("misaligned", site, "%s: the barrier is not 8-byte aligned", what);
  return address;
}

/// The barrier, as an atomic access that must be ordered after its initialisation.
TransactionBarrier& Use(uint32_t barrier, const char* what, Site site) {
  const uintptr_t address = AddressOf(barrier, what, site);
  NoteAtomic(reinterpret_cast<const void*>(address), 8, site);
  return BarrierAt(address, what, site);
}

void CompleteIfDone(TransactionBarrier& barrier) {
  if (barrier.pending != 0 || barrier.bytes != 0) return;
  ++barrier.phase;
  barrier.pending = barrier.count;
  barrier.completed = barrier.arriving;
  for (Thread* waiter : barrier.waiters) Wake(waiter);
  barrier.waiters.clear();
}

uint64_t Arrive(uint32_t address, uint32_t count, uint32_t bytes, Scope scope, const char* what,
                Site site) {
  TransactionBarrier& barrier = Use(address, what, site);
  CheckPeerUse(barrier, AddressOf(address, what, site), site);
  Count("mbarrier.arrive");
  if (barrier.pending < count) {
    Fail("barrier", site, "%s: %u arrivals, %u of the phase's %u are left", what, count,
         barrier.pending, barrier.count);
  }
  const uint64_t state = barrier.phase;
  barrier.arriving.Release(scope);
  barrier.bytes += bytes;
  barrier.pending -= count;
  CompleteIfDone(barrier);
  return state;
}

/// A phase is over when the barrier is in a later one; a parity names the current phase or the one
/// before.
bool Completed(const TransactionBarrier& barrier, uint64_t phase_or_parity, bool parity) {
  return parity ? (barrier.phase & 1) != (phase_or_parity & 1) : barrier.phase != phase_or_parity;
}

bool Test(uint32_t address, uint64_t phase, bool parity, Scope scope, Site site) {
  const char* what = "mbarrier.test_wait";
  TransactionBarrier* barrier = &Use(address, what, site);
  if (!Completed(*barrier, phase, parity)) {
    LandOne();
    SpinYield(what, site);
    barrier = &Use(address, what, site);
    if (!Completed(*barrier, phase, parity)) return false;
  }
  barrier->completed.Acquire(scope);
  return true;
}

bool Try(uint32_t address, uint64_t phase, bool parity, Scope scope, Site site) {
  const char* what = "mbarrier.try_wait";
  const uintptr_t key = AddressOf(address, what, site);
  TransactionBarrier* barrier = &Use(address, what, site);
  Count("mbarrier.wait");
  while (!Completed(*barrier, phase, parity)) {
    // In the random order copies land at any time, not only when nothing else can run.
    if (CurrentOptions().order == Order::kRandom && Random() % 4 == 0 && LandOne()) {
      barrier = &BarrierAt(key, what, site);
      continue;
    }
    barrier->waiters.push_back(current);
    Park(what, site);
    barrier = &BarrierAt(key, what, site);
  }
  barrier->completed.Acquire(scope);
  return true;
}

}  // namespace

TransactionBarrier& BarrierAt(uintptr_t address, const char* what, Site site) {
  auto& barriers = Engine().barriers;
  const auto found = barriers.find(address);
  if (found == barriers.end()) {
    Fail("barrier", site, "%s: the barrier has not been initialised", what);
  }
  uint64_t mark;
  std::memcpy(&mark, reinterpret_cast<const void*>(address), 8);
  if (mark != kBarrierMark) {
    Fail("barrier", site, "%s: the barrier has been overwritten by something else", what);
  }
  return found->second;
}

void CheckPeerUse(const TransactionBarrier& barrier, uintptr_t address, Site site) {
  if (!Checking() || barrier.published) return;
  const uintptr_t window = reinterpret_cast<uintptr_t>(current->block->shared_window);
  if (address - window < kSharedWindow) return;
  Report("barrier", site, barrier.init_site,
         "a peer's mbarrier is used, whose initialisation no fence.mbarrier_init has published");
}

void FenceMbarrierInit(Site) {
  for (auto& [address, barrier] : Engine().barriers) {
    if (barrier.initialiser == current) barrier.published = true;
  }
}

void LandBytes(uintptr_t address, int64_t bytes) {
  const auto found = Engine().barriers.find(address);
  if (found == Engine().barriers.end()) return;  // invalidated since: found at the issue otherwise
  found->second.bytes -= bytes;
  CompleteIfDone(found->second);
}

void BeginBarriers(Block* block) {
  auto& barriers = Engine().barriers;
  const uintptr_t window = reinterpret_cast<uintptr_t>(block->shared_window);
  for (auto it = barriers.begin(); it != barriers.end();) {
    it = it->first - window < kSharedWindow ? barriers.erase(it) : std::next(it);
  }
}

void EndBarriers(Block* block) {
  const uintptr_t window = reinterpret_cast<uintptr_t>(block->shared_window);
  for (const auto& [address, barrier] : Engine().barriers) {
    if (address - window >= kSharedWindow || barrier.bytes == 0) continue;
    Report("barrier", barrier.init_site, Site(),
           "an mbarrier is left with %lld expected bytes that never came",
           static_cast<long long>(barrier.bytes));
  }
  BeginBarriers(block);
}

void MbarrierInit(uint32_t barrier, uint32_t count, Site site) {
  const char* what = "mbarrier.init";
  const uintptr_t address = AddressOf(barrier, what, site);
  if (count == 0 || count >= 1u << 20) {
    Fail("barrier", site, "mbarrier.init: a count of %u", count);
  }
  void* ptr = reinterpret_cast<void*>(address);
  Access(ptr, 8, true, site);
  std::memcpy(ptr, &kBarrierMark, 8);
  TransactionBarrier fresh;
  fresh.count = count;
  fresh.pending = count;
  fresh.init_site = site;
  fresh.initialiser = current;
  Engine().barriers[address] = fresh;
}

void MbarrierInvalidate(uint32_t barrier, Site site) {
  const uintptr_t address = AddressOf(barrier, "mbarrier.inval", site);
  BarrierAt(address, "mbarrier.inval", site);
  Access(reinterpret_cast<void*>(address), 8, true, site);
  std::memset(reinterpret_cast<void*>(address), 0xff, 8);
  Engine().barriers.erase(address);
}

uint64_t MbarrierArrive(uint32_t barrier, uint32_t count, Site site, Scope scope) {
  return Arrive(barrier, count, 0, scope, "mbarrier.arrive", site);
}
uint64_t MbarrierArriveExpectTx(uint32_t barrier, uint32_t bytes, Site site, Scope scope) {
  return Arrive(barrier, 1, bytes, scope, "mbarrier.arrive.expect_tx", site);
}
void MbarrierExpectTx(uint32_t barrier, uint32_t bytes, Site site) {
  Use(barrier, "mbarrier.expect_tx", site).bytes += bytes;
}

bool MbarrierTestWait(uint32_t barrier, uint64_t state, Site site, Scope scope) {
  return Test(barrier, state, false, scope, site);
}
bool MbarrierTryWait(uint32_t barrier, uint64_t state, Site site, Scope scope) {
  return Try(barrier, state, false, scope, site);
}
bool MbarrierTestWaitParity(uint32_t barrier, uint32_t parity, Site site, Scope scope) {
  return Test(barrier, parity, true, scope, site);
}
bool MbarrierTryWaitParity(uint32_t barrier, uint32_t parity, Site site, Scope scope) {
  return Try(barrier, parity, true, scope, site);
}

}  // namespace lowrank::emu
