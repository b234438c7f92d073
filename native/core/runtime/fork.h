/// fork() copies memory but only the calling thread: nothing works for the devices that a child
/// inherits. Code that waits for such a thread, or takes a lock that one may have held, checks here
/// first.
#pragma once

#include <cstdint>

#include "native/core/status.h"

namespace lowrank {

/// The number of forks between the first call of this, in any ancestor, and this process.
uint32_t ForkGeneration();

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
