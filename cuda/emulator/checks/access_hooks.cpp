/// What g++ -fsanitize=thread calls for each load and store of an instrumented kernel. The
/// sanitizer's own runtime is not linked: these take its place, as the Linux kernel does for KCSAN.
#include "cuda/emulator/runtime.h"

#define LOWRANK_HOOK extern "C" __attribute__((visibility("hidden"))) void

// clang-format off
#define LOWRANK_ACCESS_HOOKS(bytes)                                                                         \
  LOWRANK_HOOK __tsan_read##bytes(void* p) { ::lowrank::emu::Access(p, bytes, false, LOWRANK_EMU_CALLER); } \
  LOWRANK_HOOK __tsan_write##bytes(void* p) { ::lowrank::emu::Access(p, bytes, true, LOWRANK_EMU_CALLER); } \
  LOWRANK_HOOK __tsan_unaligned_read##bytes(void* p) { ::lowrank::emu::Access(p, bytes, false, LOWRANK_EMU_CALLER); } \
  LOWRANK_HOOK __tsan_unaligned_write##bytes(void* p) { ::lowrank::emu::Access(p, bytes, true, LOWRANK_EMU_CALLER); } \
  LOWRANK_HOOK __tsan_volatile_read##bytes(void* p) {                                                       \
    if (::lowrank::emu::observing) ::lowrank::emu::AccessSlow(p, bytes, ::lowrank::emu::AccessKind::kAtomicLoad, LOWRANK_EMU_CALLER); \
  }                                                                                                         \
  LOWRANK_HOOK __tsan_volatile_write##bytes(void* p) {                                                      \
    if (::lowrank::emu::observing) ::lowrank::emu::AccessSlow(p, bytes, ::lowrank::emu::AccessKind::kAtomicStore, LOWRANK_EMU_CALLER); \
  }
// clang-format on

LOWRANK_ACCESS_HOOKS(1)
LOWRANK_ACCESS_HOOKS(2)
LOWRANK_ACCESS_HOOKS(4)
LOWRANK_ACCESS_HOOKS(8)
LOWRANK_ACCESS_HOOKS(16)

LOWRANK_HOOK __tsan_read_range(void* p, unsigned long bytes) {
  ::lowrank::emu::Access(p, static_cast<uint32_t>(bytes), false, LOWRANK_EMU_CALLER);
}
LOWRANK_HOOK __tsan_write_range(void* p, unsigned long bytes) {
  ::lowrank::emu::Access(p, static_cast<uint32_t>(bytes), true, LOWRANK_EMU_CALLER);
}
LOWRANK_HOOK __tsan_init() {}
LOWRANK_HOOK __tsan_func_entry(void*) {}
LOWRANK_HOOK __tsan_func_exit() {}
LOWRANK_HOOK __tsan_vptr_update(void**, void*) {}
LOWRANK_HOOK __tsan_vptr_read(void**) {}
