/// Check mode: what every access is held against.
#include <algorithm>
#include <unordered_map>

#include "cuda/emulator/memory.h"
#include "cuda/emulator/scheduler.h"

namespace lowrank::emu {

bool observing = false;

namespace {

/// Words in memory that carry release and acquire, of this launch.
std::unordered_map<uintptr_t, ClockState>& SyncWords() {
  static auto* words = new std::unordered_map<uintptr_t, ClockState>;
  return *words;
}

const char* Verb(AccessKind kind) {
  switch (kind) {
    case AccessKind::kRead:
      return "read";
    case AccessKind::kWrite:
      return "write";
    case AccessKind::kAtomic:
      return "atomic";
    case AccessKind::kAtomicLoad:
      return "atomic load";
    case AccessKind::kAtomicStore:
      return "atomic store";
    case AccessKind::kCopyIssue:
    case AccessKind::kCopyDone:
      return "copy's write";
    case AccessKind::kCopyRead:
      return "copy's read";
  }
  return "access";
}

bool IsWrite(AccessKind kind) {
  return kind != AccessKind::kRead && kind != AccessKind::kAtomicLoad &&
         kind != AccessKind::kCopyRead;
}

bool IsAtomic(AccessKind kind) {
  return kind == AccessKind::kAtomic || kind == AccessKind::kAtomicLoad ||
         kind == AccessKind::kAtomicStore;
}

/// One access of the running thread.
class Checker {
 public:
  Checker(uintptr_t address, uint32_t bytes, AccessKind kind, Site site)
      : address_(address),
        bytes_(bytes),
        kind_(kind),
        site_(site),
        fiber_(CurrentFiber()),
        block_(fiber_->block_state),
        clock_(&fiber_->warp_state->clock) {
    self_.instance = block_->instance;
    self_.clock = clock_->now;
    self_.thread = static_cast<uint16_t>(fiber_->warp * kWarpSize + fiber_->lane);
    self_.site = InternSite(site);
  }

  void Run() {
    if (bytes_ == 0) return;
    if (!Locate()) return;
    if (bytes_ <= 16 && (bytes_ & (bytes_ - 1)) == 0 && (address_ & (bytes_ - 1)) != 0) {
      Report("misaligned", site_, Site(), "%u-byte %s of %s memory at %p", bytes_, Verb(kind_),
             Space(), reinterpret_cast<void*>(address_));
    }
    uintptr_t at = address_;
    const uintptr_t end = address_ + bytes_;
    while (at < end) {
      const size_t byte = (at - shadow_->base()) % 4;
      const size_t here = std::min<size_t>(4 - byte, end - at);
      const uint32_t mask = ((1u << here) - 1u) << byte;
      word_ = shadow_->Word(at);
      at_ = at;
      VisitWord(mask);
      at += here;
    }
  }

 private:
  const char* Space() const { return owner_ != nullptr ? "shared" : "global"; }

  /// Finds the shadow and holds the range against the bounds.
  bool Locate() {
    if (InSharedRange(address_)) {
      owner_ = block_;
      const auto window = reinterpret_cast<uintptr_t>(owner_->shared_window);
      if (address_ - window >= kSharedStride) {
        owner_ = worker->BlockOfShared(address_);
        if (owner_ == nullptr || owner_->cluster_first != block_->cluster_first) {
          Fail("oob-shared", site_,
               "%u-byte %s in the shared memory of a block outside the cluster", bytes_,
               Verb(kind_));
        }
      }
      const auto base = reinterpret_cast<uintptr_t>(owner_->shared_base);
      if (address_ < base || address_ + bytes_ > base + owner_->shared_bytes) {
        Fail("oob-shared", site_, "%u-byte %s at byte %td of the %u bytes of shared memory", bytes_,
             Verb(kind_), static_cast<ptrdiff_t>(address_ - base), owner_->shared_bytes);
      }
      shadow_ = &owner_->shadow;
      return true;
    }
    if (!MaybeGlobal(address_)) return false;
    Region* region = FindRegion(address_);
    if (region == nullptr && !InDeviceRange(address_)) return false;  // between host ranges
    if (region == nullptr || address_ + bytes_ > region->begin + region->bytes) OutOfBounds();
    region_ = region;
    shadow_ = &region->shadow;
    return EnsureShadow(region);
  }

  void OutOfBounds() {
    const Region* before = RegionBefore(address_);
    if (before == nullptr || before->host) {
      Fail("oob-global", site_, "%u-byte %s at %p: no live allocation there", bytes_, Verb(kind_),
           reinterpret_cast<void*>(address_));
    }
    const uintptr_t end = before->begin + before->bytes;
    Fail("oob-global", site_, "%u-byte %s at %p: it ends %zu bytes past an allocation of %zu bytes",
         bytes_, Verb(kind_), reinterpret_cast<void*>(address_),
         static_cast<size_t>(address_ + bytes_ - end), before->bytes);
  }

  bool Ordered(const Access1& event) const {
    if (event.instance < running->first_instance) {  // nobody, or an earlier launch
      return running->unfinished.empty() || !Unfinished(event) || WaitedForGrids();
    }
    if (event.instance == self_.instance) {
      if (event.warp() == fiber_->warp &&
          (event.lane() == fiber_->lane || event.clock < clock_->ordered)) {
        return true;
      }
      return clock_->own[event.warp()].Covers(event.clock, event.lane());
    }
    if (clock_->others == nullptr) return false;
    const auto found = clock_->others->find(event.instance);
    return found != clock_->others->end() && event.warp() < found->second.size() &&
           found->second[event.warp()].Covers(event.clock, event.lane());
  }

  /// By a launch that this one overlaps?
  static bool Unfinished(const Access1& event) {
    return std::any_of(running->unfinished.begin(), running->unfinished.end(), [&](const auto& of) {
      return event.instance >= of.first && event.instance < of.second;
    });
  }
  /// Itself, or a thread of its block before it.
  bool WaitedForGrids() const {
    if (fiber_->waited_for_grids) return true;
    return block_->grid_wait.instance != 0 && Ordered(block_->grid_wait);
  }

  void Race(const Access1& other, const char* was) const {
    if (other.instance < running->first_instance) {
      Report("grid-dependency", site_, InternedSite(other.site),
             "%s of global memory at byte %td of %zu before griddepcontrol.wait: the launch of the "
             "%s may still run",
             Verb(kind_), static_cast<ptrdiff_t>(at_ - region_->begin), region_->bytes, was);
      return;
    }
    const uintptr_t base =
        owner_ != nullptr ? reinterpret_cast<uintptr_t>(owner_->shared_base) : region_->begin;
    Report(owner_ != nullptr ? "race-shared" : "race-global", site_, InternedSite(other.site),
           "%s of %s memory at byte %td of %zu races with a %s by block %u warp %u lane %u",
           Verb(kind_), Space(), static_cast<ptrdiff_t>(at_ - base),
           owner_ != nullptr ? size_t{owner_->shared_bytes} : region_->bytes, was,
           other.instance - running->first_instance, other.warp(), other.lane());
  }

  void VisitWord(uint32_t mask) {
    if ((kind_ == AccessKind::kRead || kind_ == AccessKind::kAtomic ||
         kind_ == AccessKind::kAtomicLoad) &&
        !shadow_->Initialised(word_, mask)) {
      Report("uninitialised", site_, Site(), "%u-byte %s of %s memory that nobody has written",
             bytes_, Verb(kind_), Space());
    }
    if (IsWrite(kind_)) shadow_->SetInitialised(word_, mask);
    Cell* cell = shadow_->At(word_);
    if (mask == 0xf && (cell->flags & kCellSplit) == 0) {
      VisitCell(cell, true);
      return;
    }
    std::array<Cell, 4>& bytes = *shadow_->Split(cell);
    for (uint32_t i = 0; i < 4; ++i) {
      if ((mask >> i & 1u) != 0) VisitCell(&bytes[i], false);
    }
    if (mask == 0xf && IsWrite(kind_)) {
      const Cell same = bytes[0];
      shadow_->Merge(cell, same);
    }
  }

  void VisitCell(Cell* cell, bool whole_word) {
    const bool write = IsWrite(kind_);
    const bool current_launch = cell->write.instance >= running->first_instance;
    if (kind_ == AccessKind::kCopyDone) {
      if ((cell->flags & kCellInFlight) == 0 && !Ordered(cell->write)) Race(cell->write, "write");
      RecordWrite(cell);
      return;
    }
    if ((cell->flags & kCellInFlight) != 0 && current_launch) {
      Report("async-in-flight", site_, InternedSite(cell->write.site),
             "%s of shared memory at byte %td while an asynchronous copy to it is in flight",
             Verb(kind_),
             owner_ != nullptr
                 ? static_cast<ptrdiff_t>(at_ - reinterpret_cast<uintptr_t>(owner_->shared_base))
                 : static_cast<ptrdiff_t>(at_));
    } else if (!(IsAtomic(kind_) && (cell->flags & kCellWriteAtomic) != 0) &&
               !Ordered(cell->write)) {
      Race(cell->write, (cell->flags & kCellWriteAtomic) != 0 ? "atomic" : "write");
    }
    if (write) {
      if (!(IsAtomic(kind_) && (cell->flags & kCellReadAtomic) != 0)) CheckReads(*cell, whole_word);
      RecordWrite(cell);
    } else {
      RecordRead(cell, whole_word);
    }
  }

  void CheckReads(const Cell& cell, bool whole_word) const {
    const bool ours = cell.read.instance == self_.instance;
    if (!Ordered(cell.read) || (ours && cell.read_lanes != 0 && cell.read.warp() == fiber_->warp &&
                                cell.read.clock >= clock_->ordered &&
                                !clock_->own[fiber_->warp].Covers(cell.read.clock, 31))) {
      Race(cell.read, "read");
    } else if (!Ordered(cell.read_other)) {
      Race(cell.read_other, "read");
    } else if (owner_ == block_ && whole_word) {
      for (uint32_t warp = 0; warp < block_->warps; ++warp) {
        const uint32_t read = block_->shared_reads[word_ * block_->warps + warp];
        const Known& known = clock_->own[warp];
        if (warp != fiber_->warp && read != 0 && read - 1 > std::max(known.all, known.some)) {
          Access1 other = cell.read;
          other.instance = self_.instance;
          other.thread = static_cast<uint16_t>(warp * kWarpSize);
          Race(other, "read");
          break;
        }
      }
    }
  }

  void RecordWrite(Cell* cell) const {
    cell->write = self_;
    cell->fences = static_cast<uint16_t>(fiber_->proxy_fences);
    uint8_t flags = 0;
    if (IsAtomic(kind_)) flags = static_cast<uint8_t>(flags | kCellWriteAtomic);
    // What a thread has copied by cp.async and waited for is as if it had stored it.
    if (kind_ == AccessKind::kCopyIssue) {
      flags = static_cast<uint8_t>(flags | kCellInFlight | kCellByCopy);
    }
    cell->flags = static_cast<uint8_t>(flags | (cell->flags & kCellReadAtomic));
  }

  void RecordRead(Cell* cell, bool whole_word) const {
    const bool same_moment = cell->read.instance == self_.instance &&
                             cell->read.warp() == fiber_->warp && cell->read.clock == self_.clock;
    if (!same_moment) {
      cell->read_lanes = 0;
    } else if (cell->read.lane() != fiber_->lane) {
      cell->read_lanes = 1;
    }
    if (cell->read.instance != self_.instance) cell->read_other = cell->read;
    cell->read = self_;
    cell->flags = static_cast<uint8_t>(IsAtomic(kind_) ? cell->flags | kCellReadAtomic
                                                       : cell->flags & ~kCellReadAtomic);
    if (owner_ == block_ && whole_word) {
      block_->shared_reads[word_ * block_->warps + fiber_->warp] = self_.clock + 1;
    }
  }

  const uintptr_t address_;
  const uint32_t bytes_;
  const AccessKind kind_;
  const Site site_;
  Fiber* const fiber_;
  BlockState* const block_;
  WarpClock* const clock_;
  Access1 self_;
  BlockState* owner_ = nullptr;     // of the shared memory; null: global
  const Region* region_ = nullptr;  // of global memory
  ShadowMemory* shadow_ = nullptr;
  size_t word_ = 0;
  uintptr_t at_ = 0;
};

}  // namespace

void AccessSlow(const void* ptr, uint32_t bytes, AccessKind kind, Site site) {
  if (current == nullptr) return;
  const auto address = reinterpret_cast<uintptr_t>(ptr);
  // A kernel's own variables: most of what is asked about, and nobody else's.
  if (address - CurrentFiber()->stack_begin < StackPool::kStackBytes) return;
  const bool shared = InSharedRange(address);
  if (!shared && !InDeviceRange(address)) {
    // The caller's memory may lie between two registered host ranges: that is none of a kernel's.
    if (!MaybeGlobal(address) || FindRegion(address) == nullptr) return;
  }
  if (running->check) Checker(address, bytes, kind, site).Run();
  if (running->counters && kind <= AccessKind::kAtomicStore) {
    RequestKind request;
    if (kind == AccessKind::kAtomic) {
      request = shared ? RequestKind::kAtomicShared : RequestKind::kAtomicGlobal;
    } else if (IsWrite(kind)) {
      request = shared ? RequestKind::kStoreShared : RequestKind::kStoreGlobal;
    } else {
      request = shared ? RequestKind::kLoadShared : RequestKind::kLoadGlobal;
    }
    LogAccess(ptr, bytes, request, site);
  }
}

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

ShadowMemory* ShadowOf(uintptr_t address) {
  if (worker == nullptr || running == nullptr || !running->check) return nullptr;
  if (InSharedRange(address)) {
    BlockState* block = worker->BlockOfShared(address);
    return block == nullptr ? nullptr : &block->shadow;
  }
  Region* region = MaybeGlobal(address) ? FindRegion(address) : nullptr;
  return region == nullptr || !region->shadow.present() ? nullptr : &region->shadow;
}

void MarkPublished(const void* ptr, size_t bytes) {
  const auto address = reinterpret_cast<uintptr_t>(ptr);
  ShadowMemory* shadow = ShadowOf(address);
  if (shadow == nullptr) return;
  shadow->Forget(address, bytes);
  shadow->Mark(address, bytes, true);
  if (!InSharedRange(address)) return;
  BlockState* block = worker->BlockOfShared(address);
  if (block == nullptr || bytes == 0) return;
  const size_t first = shadow->Word(address);
  const size_t last = shadow->Word(address + bytes - 1);
  std::fill(block->shared_reads.begin() + static_cast<ptrdiff_t>(first * block->warps),
            block->shared_reads.begin() + static_cast<ptrdiff_t>((last + 1) * block->warps), 0u);
}

}  // namespace lowrank::emu
