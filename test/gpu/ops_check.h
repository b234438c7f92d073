/// What the two parts of gpu_ops_check share.
#pragma once

#include <string>

#include "test/gpu/operands.h"

namespace lowrank::cuda {

struct OpsCheck {
  Machine* machine = nullptr;
  bool tiny = false;   // sizes for the emulator
  bool plant = false;  // one bit of a result is turned, to prove that it is seen
  int failures = 0;
  int checks = 0;

  /// `facts` is more JSON: `,"name":value` or empty.
  void Report(const std::string& check, bool passed, const std::string& facts);
  /// A check that could not be made; a failure unless `reason` is one.
  void Report(const std::string& check, const Status& status);
  void Skip(const std::string& check, const std::string& reason);
};

/// The same call again and again, and on two streams at once, must give the same bits.
void CheckRepeats(OpsCheck* check);

/// Sizes of real models, and tensors of more than 2^31 elements: sampled elements against sums in
/// double.
void CheckLarge(OpsCheck* check);

}  // namespace lowrank::cuda
