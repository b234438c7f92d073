/// cp.async: copies are queued by their thread and land when it waits for them (late), or at once
/// (early). The two are the extremes of what hardware may do; a kernel must be right under both.
#include <algorithm>
#include <cstring>

#include "cuda/emulator/state/scheduler.h"

namespace lowrank::emu {
namespace {

/// A pipeline that never runs empty would keep every copy it has made.
constexpr size_t kKeptCopies = 256;

void Land(const AsyncCopy& copy) {
  std::memcpy(copy.dst, copy.src, copy.source_bytes);
  if (copy.source_bytes < copy.bytes) {
    std::memset(static_cast<unsigned char*>(copy.dst) + copy.source_bytes, 0,
                copy.bytes - copy.source_bytes);
  }
}

/// The thread has waited for the copies up to `end`.
void WaitFor(Fiber* fiber, size_t end) {
  CopyQueue& queue = fiber->copies;
  const bool late = running->options.copies == Copies::kLate;
  for (; queue.done < end; ++queue.done) {
    const AsyncCopy& copy = queue.copies[queue.done];
    if (late) Land(copy);
    if (running->check) AccessSlow(copy.dst, copy.bytes, AccessKind::kCopyDone, copy.site);
  }
  if (queue.done == queue.copies.size()) {
    queue.Clear();
  } else if (queue.done >= kKeptCopies) {
    const auto done = static_cast<ptrdiff_t>(queue.done);
    queue.copies.erase(queue.copies.begin(), queue.copies.begin() + done);
    for (size_t& group_end : queue.group_ends) group_end -= std::min(group_end, queue.done);
    queue.done = 0;
  }
}

}  // namespace

void CpAsync(void* s_dst, const void* g_src, uint32_t bytes, uint32_t source_bytes, Site site) {
  Fiber* fiber = CurrentFiber();
  if (source_bytes > bytes) {
    Fail("misaligned", site, "cp.async: src-size %u above cp-size %u", source_bytes, bytes);
  }
  if (!IsShared(s_dst)) {
    Fail("oob-shared", site, "cp.async: its target %p is not in shared memory", s_dst);
  }
  if (((reinterpret_cast<uintptr_t>(s_dst) | reinterpret_cast<uintptr_t>(g_src)) & (bytes - 1)) !=
      0) {
    Fail("misaligned", site, "cp.async of %u bytes from %p to shared address %u", bytes, g_src,
         SharedAddress(s_dst));
  }
  if (__builtin_expect(observing, 0)) {
    if (running->check) {
      if (source_bytes != 0) AccessSlow(g_src, source_bytes, AccessKind::kCopyRead, site);
      AccessSlow(s_dst, bytes, AccessKind::kCopyIssue, site);
    }
    if (running->counters) {
      if (source_bytes != 0) LogAccess(g_src, source_bytes, RequestKind::kCopyFromGlobal, site);
      LogAccess(s_dst, bytes, RequestKind::kCopyToShared, site);
    }
  }
  fiber->copies.copies.push_back({s_dst, g_src, bytes, source_bytes, site});
  if (running->options.copies == Copies::kEarly) Land(fiber->copies.copies.back());
}

void CpAsyncCommit(Site) {
  CopyQueue& queue = CurrentFiber()->copies;
  queue.group_ends.push_back(queue.copies.size());
}

void CpAsyncWait(uint32_t pending_groups, Site) {
  Fiber* fiber = CurrentFiber();
  CopyQueue& queue = fiber->copies;
  if (queue.group_ends.size() <= pending_groups) return;
  const size_t landed = queue.group_ends.size() - pending_groups;
  WaitFor(fiber, queue.group_ends[landed - 1]);
  if (!queue.group_ends.empty()) {
    queue.group_ends.erase(queue.group_ends.begin(),
                           queue.group_ends.begin() + static_cast<ptrdiff_t>(landed));
  }
}

void CpAsyncWaitAll(Site) {
  Fiber* fiber = CurrentFiber();
  WaitFor(fiber, fiber->copies.copies.size());
  fiber->copies.Clear();
}

void CheckCopiesWaited(Fiber* fiber) {
  const CopyQueue& queue = fiber->copies;
  if (queue.done >= queue.copies.size()) return;
  Report("async-unwaited", queue.copies[queue.done].site, Site(),
         "the thread exits with %zu copies that it never waited for",
         queue.copies.size() - queue.done);
}

}  // namespace lowrank::emu
