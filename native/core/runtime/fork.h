/// fork() copies memory and no thread but the caller's: what a child inherits of a device has
/// nobody who works for it. Whoever waits for such a thread, or takes a lock that one may have
/// held, asks here first.
#pragma once

#include <cstdint>

#include "native/core/status.h"

namespace lowrank {

/// How many forks lie between the first call of this, in any ancestor, and this process.
uint32_t ForkGeneration();

/// Remembers in which process it was made.
class ForkMark {
 public:
  /// Whether this is a child of that process.
  bool orphaned() const { return ForkGeneration() != made_in_; }
  /// kDevice where it is; `device` is the public name.
  Status Check(const char* device) const;

 private:
  uint32_t made_in_ = ForkGeneration();
};

}  // namespace lowrank
