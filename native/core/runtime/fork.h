/// fork() copies memory but only the calling thread: the queue of a device that a child inherits
/// has no thread. Code that waits for such a thread, or takes a lock that one may have held, checks
/// here first. Memory of a host device, and ops on the caller's own thread, work in a child.
#pragma once

#include <cstdint>
#include <mutex>

#include "native/core/status.h"

namespace lowrank {

/// The number of forks between the first call of this, in any ancestor, and this process.
uint32_t ForkGeneration();

/// Locks `mutex` while this process forks, so that a child finds whole what it guards. For locks
/// that are held briefly and over no other lock. The mutex is never destroyed.
void HoldAcrossForks(std::mutex* mutex);

/// Remembers in which process it was made.
class ForkMark {
 public:
  /// Is this process a child of that process?
  bool orphaned() const { return ForkGeneration() != made_in_; }
  /// kDevice if it is; `device` is the public name.
  Status Check(const char* device) const;

 private:
  uint32_t made_in_ = ForkGeneration();
};

}  // namespace lowrank
