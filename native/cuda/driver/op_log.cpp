#include "native/cuda/driver/op_log.h"

#include <algorithm>

namespace lowrank::cuda {

std::string OpLog::InFlight() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  const uint64_t running = issued_ - passed_;
  if (running == 0) return "while no op ran";
  const uint64_t told = std::min<uint64_t>(running, kSlots);
  std::string text = running == 1 ? "while it ran " : "while one of these ran: ";
  for (uint64_t i = issued_ - told; i < issued_; ++i) {
    const Slot& slot = slots_[i % kSlots];
    if (i != issued_ - told) text += "; ";
    text += slot.describe(slot.op);
  }
  if (running > told) text += " (and " + std::to_string(running - told) + " before)";
  return text;
}

}  // namespace lowrank::cuda
