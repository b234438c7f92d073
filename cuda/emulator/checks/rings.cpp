/// Rings in shared memory, in check mode: is what a slot is read as what it was filled with?
///
/// Barriers order who fills a slot and who reads it, so that the wrong turn of a ring is no race:
/// the kernels say which one they mean.
#include "cuda/emulator/state/scheduler.h"

namespace lowrank::emu {

void NoteSlotFilled(const void* s_slot, uint32_t generation, Site site) {
  if (!running->check) return;
  CurrentFiber()->block_state->slots[reinterpret_cast<uintptr_t>(s_slot)] = {generation, site};
}

void NoteSlotRead(const void* s_slot, uint32_t generation, Site site) {
  if (!running->check) return;
  const BlockState* block = CurrentFiber()->block_state;
  const auto found = block->slots.find(reinterpret_cast<uintptr_t>(s_slot));
  if (found == block->slots.end()) {
    Report("ring", site, Site(), "a slot is read as turn %u, and nobody has filled it", generation);
  } else if (found->second.generation != generation) {
    Report("ring", site, found->second.site, "a slot is read as turn %u, and holds turn %u",
           generation, found->second.generation);
  }
}

}  // namespace lowrank::emu
