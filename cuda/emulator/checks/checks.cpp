/// Check mode: what every access is held against.
#include <algorithm>
#include <type_traits>

#include "cuda/emulator/state/memory.h"
#include "cuda/emulator/state/scheduler.h"

namespace lowrank::emu {

bool observing = false;

namespace {

const char* Verb(AccessKind kind) {
  switch (kind) {
    case AccessKind::kRead:
      return "read";
    case AccessKind::kReadNonCoherent:
      return "non-coherent read";
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

constexpr bool IsWrite(AccessKind kind) {
  return kind != AccessKind::kRead && kind != AccessKind::kReadNonCoherent &&
         kind != AccessKind::kAtomicLoad && kind != AccessKind::kCopyRead;
}

constexpr bool IsAtomic(AccessKind kind) {
  return kind == AccessKind::kAtomic || kind == AccessKind::kAtomicLoad ||
         kind == AccessKind::kAtomicStore;
}

/// One access of the running thread.
class Checker {
 public:
  Checker(uintptr_t address, uint32_t bytes, AccessKind kind, Site site, Scope scope)
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
    self_.scope = scope;
  }

  /// `kind` is kind_, as a constant where a body of its own is worth it (Observe()).
  template <typename Kind>
  void Run(Kind kind) {
    if (bytes_ == 0) return;
    if (!Locate()) return;
    if (bytes_ <= 16 && (bytes_ & (bytes_ - 1)) == 0 && (address_ & (bytes_ - 1)) != 0) {
      Report("misaligned", site_, Site(), "%u-byte %s of %s memory at %p", bytes_, Verb(kind_),
             Space(), reinterpret_cast<void*>(address_));
    }
    uintptr_t at = address_;
    const uintptr_t end = address_ + bytes_;
    if (((address_ - shadow_->base()) | bytes_) % 4 == 0) {  // whole words, most of all
      word_ = shadow_->Word(at);
      for (; at < end; at += 4, ++word_) {
        at_ = at;
        VisitWord(kind, 0xf);
      }
      return;
    }
    while (at < end) {
      const size_t byte = (at - shadow_->base()) % 4;
      const size_t here = std::min<size_t>(4 - byte, end - at);
      const uint32_t mask = ((1u << here) - 1u) << byte;
      word_ = shadow_->Word(at);
      at_ = at;
      VisitWord(kind, mask);
      at += here;
    }
  }

 private:
  const char* Space() const { return owner_ != nullptr ? "shared" : "global"; }

  /// Finds the shadow and holds the range against the bounds.
  bool Locate() {
    const auto own = reinterpret_cast<uintptr_t>(block_->shared_base);
    if (address_ - own < block_->shared_bytes &&
        bytes_ <= block_->shared_bytes - (address_ - own)) {
      owner_ = block_;
      shadow_ = &block_->shadow;
      return true;
    }
    return LocateOther();
  }

  __attribute__((noinline)) bool LocateOther() {
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

  __attribute__((always_inline)) bool Ordered(const Access1& event) const {
    if (event.instance < first_instance_) {  // nobody, or an earlier launch
      return running->unfinished.empty() || !Unfinished(event) || WaitedForGrids();
    }
    if (event.instance == self_.instance) {
      if (event.warp() == fiber_->warp &&
          (event.lane() == fiber_->lane || event.clock < clock_->ordered)) {
        return true;
      }
      return clock_->own[event.warp()].Covers(event.clock, event.lane());
    }
    return OrderedOfOther(event);
  }

  /// Of another block.
  __attribute__((noinline)) bool OrderedOfOther(const Access1& event) const {
    if (clock_->others == nullptr) return false;
    const auto found = clock_->others->find(event.instance);
    return found != clock_->others->end() && event.warp() < found->second.size() &&
           found->second[event.warp()].Covers(event.clock, event.lane());
  }

  /// Are two atomics, this one and another, so for each other? The scope of each has to include the
  /// other's thread; else they race as plain accesses do.
  bool Strong(const Access1& event) const {
    if (event.instance < first_instance_ || event.instance == self_.instance) return true;
    const uint32_t size = block_->cluster_size;
    const bool same_cluster =
        (event.instance - first_instance_) / size == (self_.instance - first_instance_) / size;
    const Scope needed = same_cluster ? Scope::kCluster : Scope::kDevice;
    return std::min(self_.scope, event.scope) >= needed;
  }

  /// By a launch that this one overlaps?
  static bool Unfinished(const Access1& event) {
    return std::any_of(running->unfinished.begin(), running->unfinished.end(), [&](const auto& of) {
      return event.instance >= of.first && event.instance < of.second;
    });
  }
  /// Itself, or a thread of its block before it.
  __attribute__((noinline)) bool WaitedForGrids() const {
    if (fiber_->waited_for_grids) return true;
    return block_->grid_wait.instance != 0 && Ordered(block_->grid_wait);
  }

  __attribute__((noinline, cold)) void Race(const Access1& other, const char* was) const {
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

  template <typename Kind>
  __attribute__((always_inline)) void VisitWord(Kind kind, uint32_t mask) {
    if ((kind == AccessKind::kRead || kind == AccessKind::kReadNonCoherent ||
         kind == AccessKind::kAtomic || kind == AccessKind::kAtomicLoad) &&
        !shadow_->Initialised(word_, mask)) {
      Uninitialised();
    }
    if (IsWrite(kind)) shadow_->SetInitialised(word_, mask);
    Cell* cell = shadow_->At(word_);
    if (mask == 0xf && (cell->flags & kCellSplit) == 0) {
      VisitCell(kind, cell, true);
      return;
    }
    VisitBytes(kind, cell, mask);
  }

  __attribute__((noinline, cold)) void Uninitialised() const {
    Report("uninitialised", site_, Site(), "%u-byte %s of %s memory that nobody has written",
           bytes_, Verb(kind_), Space());
  }

  template <typename Kind>
  __attribute__((noinline)) void VisitBytes(Kind kind, Cell* cell, uint32_t mask) {
    std::array<Cell, 4>& bytes = *shadow_->Split(cell);
    for (uint32_t i = 0; i < 4; ++i) {
      if ((mask >> i & 1u) != 0) VisitCell(kind, &bytes[i], false);
    }
    if (mask == 0xf && IsWrite(kind)) {
      const Cell same = bytes[0];
      shadow_->Merge(cell, same);
    }
  }

  template <typename Kind>
  __attribute__((always_inline)) void VisitCell(Kind kind, Cell* cell, bool whole_word) {
    const bool write = IsWrite(kind);
    const bool current_launch = cell->write.instance >= first_instance_;
    if (kind == AccessKind::kCopyDone) {
      if ((cell->flags & kCellInFlight) == 0 && !Ordered(cell->write)) Race(cell->write, "write");
      RecordWrite(kind, cell);
      return;
    }
    if ((cell->flags & kCellInFlight) != 0 && current_launch) {
      InFlight(*cell);
    } else if (!(IsAtomic(kind) && (cell->flags & kCellWriteAtomic) != 0 && Strong(cell->write)) &&
               !Ordered(cell->write)) {
      Race(cell->write, (cell->flags & kCellWriteAtomic) != 0 ? "atomic" : "write");
    } else if (kind == AccessKind::kReadNonCoherent && cell->write.instance != 0 &&
               (current_launch || Unfinished(cell->write))) {
      NonCoherent(*cell);
    }
    if (write) {
      if (!(IsAtomic(kind) && (cell->flags & kCellReadAtomic) != 0 && Strong(cell->read))) {
        CheckReads(*cell, whole_word);
      }
      RecordWrite(kind, cell);
    } else {
      RecordRead(kind, cell, whole_word);
    }
  }

  __attribute__((noinline, cold)) void InFlight(const Cell& cell) const {
    Report("async-in-flight", site_, InternedSite(cell.write.site),
           "%s of shared memory at byte %td while an asynchronous copy to it is in flight",
           Verb(kind_),
           owner_ != nullptr
               ? static_cast<ptrdiff_t>(at_ - reinterpret_cast<uintptr_t>(owner_->shared_base))
               : static_cast<ptrdiff_t>(at_));
  }

  __attribute__((noinline, cold)) void NonCoherent(const Cell& cell) const {
    const bool own = cell.write.instance >= first_instance_;
    Report(
        "non-coherent", site_, InternedSite(cell.write.site),
        "non-coherent read of global memory at byte %td of %zu, which %s: its cache may hold what "
        "was there before",
        static_cast<ptrdiff_t>(at_ - region_->begin), region_->bytes,
        own ? "this launch has written" : "a launch has written that this one overlaps");
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

  template <typename Kind>
  void RecordWrite(Kind kind, Cell* cell) const {
    cell->write = self_;
    cell->fences = static_cast<uint16_t>(fiber_->proxy_fences);
    uint8_t flags = 0;
    if (IsAtomic(kind)) flags = static_cast<uint8_t>(flags | kCellWriteAtomic);
    // What a thread has copied by cp.async and waited for is as if it had stored it.
    if (kind == AccessKind::kCopyIssue) {
      flags = static_cast<uint8_t>(flags | kCellInFlight | kCellByCopy);
    }
    cell->flags = static_cast<uint8_t>(flags | (cell->flags & kCellReadAtomic));
  }

  template <typename Kind>
  void RecordRead(Kind kind, Cell* cell, bool whole_word) const {
    const bool same_moment = cell->read.instance == self_.instance &&
                             cell->read.warp() == fiber_->warp && cell->read.clock == self_.clock;
    if (!same_moment) {
      cell->read_lanes = 0;
    } else if (cell->read.lane() != fiber_->lane) {
      cell->read_lanes = 1;
    }
    if (cell->read.instance != self_.instance) cell->read_other = cell->read;
    cell->read = self_;
    cell->flags = static_cast<uint8_t>(IsAtomic(kind) ? cell->flags | kCellReadAtomic
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
  const uint32_t first_instance_ = running->first_instance;
  Access1 self_;
  BlockState* owner_ = nullptr;     // of the shared memory; null: global
  const Region* region_ = nullptr;  // of global memory
  ShadowMemory* shadow_ = nullptr;
  size_t word_ = 0;
  uintptr_t at_ = 0;
};

/// Of memory that may be others' too.
__attribute__((noinline)) void Observe(const void* ptr, uint32_t bytes, AccessKind kind, Site site,
                                       Scope scope) {
  const auto address = reinterpret_cast<uintptr_t>(ptr);
  const bool shared = InSharedRange(address);
  if (!shared && !InDeviceRange(address)) {
    // The caller's memory may lie between two registered host ranges: that is none of a kernel's.
    if (!MaybeGlobal(address) || FindRegion(address) == nullptr) return;
  }
  if (running->check) {
    Checker checker(address, bytes, kind, site, scope);
    if (kind == AccessKind::kRead) {
      checker.Run(std::integral_constant<AccessKind, AccessKind::kRead>());
    } else if (kind == AccessKind::kWrite) {
      checker.Run(std::integral_constant<AccessKind, AccessKind::kWrite>());
    } else {
      checker.Run(kind);
    }
  }
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

}  // namespace

void AccessSlow(const void* ptr, uint32_t bytes, AccessKind kind, Site site, Scope scope) {
  if (current == nullptr) return;
  // A kernel's own variables: most of what is asked about, and nobody else's.
  const auto address = reinterpret_cast<uintptr_t>(ptr);
  const Fiber* fiber = CurrentFiber();
  if (address - fiber->stack_begin < StackPool::kStackBytes) {
    if (__builtin_expect(fiber->watched, 0)) {
      extension.own_access(ptr, bytes, kind == AccessKind::kWrite, site);
    }
    return;
  }
  Observe(ptr, bytes, kind, site, scope);
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
