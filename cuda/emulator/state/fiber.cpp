#include "cuda/emulator/state/fiber.h"

#include <sys/mman.h>

namespace lowrank::emu {

// The last jump is indirect, not a return: the processor predicts a return to whoever called the
// switch, which is wrong every time, and an indirect jump to where this one went last, which is
// right for a warp whose lanes take turns at one instruction.
#if defined(__x86_64__)
asm(R"(
.text
.p2align 4
.globl lowrank_emu_switch
.hidden lowrank_emu_switch
.type lowrank_emu_switch, @function
lowrank_emu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  popq %rcx
  jmpq *%rcx
.size lowrank_emu_switch, .-lowrank_emu_switch
)");

void* PrepareFiber(unsigned char* stack_top, void (*entry)()) {
  // At entry() the stack is as after a call: 8 below a multiple of 16, a null return address on it.
  auto* sp = reinterpret_cast<uint64_t*>(reinterpret_cast<uintptr_t>(stack_top) & ~uintptr_t{15});
  *--sp = 0;
  *--sp = reinterpret_cast<uintptr_t>(entry);
  for (int i = 0; i < 6; ++i) *--sp = 0;
  return sp;
}
#elif defined(__aarch64__)
asm(R"(
.text
.p2align 4
.globl lowrank_emu_switch
.hidden lowrank_emu_switch
.type lowrank_emu_switch, %function
lowrank_emu_switch:
  sub sp, sp, #176
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #176
  br x30
.size lowrank_emu_switch, .-lowrank_emu_switch
)");

void* PrepareFiber(unsigned char* stack_top, void (*entry)()) {
  constexpr int kWords = 176 / 8;
  constexpr int kLinkRegister = 11;  // x30, at byte 88 of the frame
  auto* sp = reinterpret_cast<uint64_t*>(reinterpret_cast<uintptr_t>(stack_top) & ~uintptr_t{15});
  sp -= kWords;
  for (int i = 0; i < kWords; ++i) sp[i] = 0;
  sp[kLinkRegister] = reinterpret_cast<uintptr_t>(entry);
  return sp;
}
#else
#error "the emulator switches fibers on x86-64 and aarch64 only"
#endif

StackPool::~StackPool() {
  if (base_ != nullptr) munmap(base_, count_ * kStackBytes);
}

bool StackPool::Reserve(uint32_t count) {
  if (count <= count_) return true;
  if (base_ != nullptr) munmap(base_, count_ * kStackBytes);
  base_ = nullptr;
  count_ = 0;
  void* base = mmap(nullptr, count * kStackBytes, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) return false;
  base_ = static_cast<unsigned char*>(base);
  count_ = count;
  for (uint32_t i = 0; i < count; ++i) mprotect(Bottom(i), 4096, PROT_NONE);
  return true;
}

}  // namespace lowrank::emu
