/// Stacks and the switch between them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lowrank::emu {

/// Saves the callee-saved registers on the running stack and its pointer in *save, goes on where
/// `to` was saved. Floating-point control is not switched: kernels do not change it.
extern "C" void lowrank_emu_switch(void** save, void* to) __attribute__((visibility("hidden")));

/// A fiber that has not run yet: switching to the result calls entry(), which must not return.
void* PrepareFiber(unsigned char* stack_top, void (*entry)());

/// Stacks of equal size in one mapping, each with a guard page below it. Pages become real when
/// they are touched and are kept.
class StackPool {
 public:
  StackPool() = default;
  ~StackPool();
  StackPool(const StackPool&) = delete;
  StackPool& operator=(const StackPool&) = delete;

  /// Room for `count` stacks; those handed out before are gone. False where there is no memory.
  bool Reserve(uint32_t count);
  /// The top of stack i. Tops are spread over cache sets: at equal offsets in their pages, the
  /// frames of a warp's lanes would all fall into the same few sets and evict each other.
  unsigned char* Top(uint32_t i) const {
    return base_ + (static_cast<size_t>(i) + 1) * kStackBytes - 64 - (i % 61) * 256;
  }
  unsigned char* Bottom(uint32_t i) const { return base_ + static_cast<size_t>(i) * kStackBytes; }

  static constexpr size_t kStackBytes = 128 * 1024;

 private:
  unsigned char* base_ = nullptr;
  uint32_t count_ = 0;
};

}  // namespace lowrank::emu
