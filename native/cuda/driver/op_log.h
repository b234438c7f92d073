/// The last ops that were issued. A GPU reports a fault late and without naming its op; the best
/// that can be reported is what ran since the last point known to be good. An op is copied, not
/// formatted: its text is made only when it is needed.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <string>
#include <type_traits>

#include "native/core/ops/ops.h"

namespace lowrank::cuda {

class OpLog {
 public:
  /// Numbers count from 1.
  template <typename Op>
  void Add(const Op& op) {
    static_assert(std::is_trivially_copyable_v<Op> && sizeof(Op) <= kSlotBytes);
    const std::lock_guard<std::mutex> lock(mutex_);
    Slot& slot = slots_[issued_++ % kSlots];
    std::memcpy(slot.op, &op, sizeof(Op));
    slot.describe = [](const unsigned char* bytes) {
      Op copy;
      std::memcpy(static_cast<void*>(&copy), bytes, sizeof(Op));
      return copy.Describe();
    };
  }
  /// How many have been issued so far.
  uint64_t issued() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return issued_;
  }
  /// All ops up to this number have run.
  void Passed(uint64_t number) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (number > passed_) passed_ = number;
  }
  /// "while it ran matmul ...", or a list, or a text that says that nothing ran.
  std::string InFlight() const;

 private:
  static constexpr size_t kSlots = 8;
  static constexpr size_t kSlotBytes = 1344;
  struct Slot {
    alignas(16) unsigned char op[kSlotBytes];
    std::string (*describe)(const unsigned char* op) = nullptr;
  };

  mutable std::mutex mutex_;
  std::array<Slot, kSlots> slots_;
  uint64_t issued_ = 0;
  uint64_t passed_ = 0;
};

}  // namespace lowrank::cuda
