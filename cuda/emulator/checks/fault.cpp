/// A fault in a kernel ends the launch with a finding; the process lives. The handlers stand only
/// while a launch runs, and hand every other fault on to whoever had them before (V8 has its own
/// for WebAssembly).
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cstdlib>
#include <string>

#include "cuda/emulator/state/memory.h"
#include "cuda/emulator/state/scheduler.h"

namespace lowrank::emu {
namespace {

#if !defined(__SANITIZE_ADDRESS__)
constexpr int kSignals[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE};
constexpr size_t kSignalCount = sizeof(kSignals) / sizeof(*kSignals);
struct sigaction previous[kSignalCount];
thread_local uintptr_t fault_pc = 0;
thread_local int fault_signal = 0;

std::string Describe(uintptr_t address) {
  if (InSharedRange(address)) return "in a gap between shared memories";
  const BlockState* block = CurrentFiber() == nullptr ? nullptr : CurrentFiber()->block_state;
  if (block != nullptr) {
    const auto bottom = reinterpret_cast<uintptr_t>(block->stacks.Bottom(CurrentFiber()->linear));
    if (address >= bottom && address < bottom + 4096) return "the thread's stack is full";
  }
  if (InDeviceRange(address)) {
    const Region* before = RegionBefore(address);
    if (before == nullptr) return "no live allocation there";
    if (address < before->begin + before->bytes) return "closed: not allocated yet in this stream";
    return std::to_string(address - (before->begin + before->bytes)) +
           " bytes past the end of an allocation of " + std::to_string(before->bytes);
  }
  return "not in device memory";
}

/// Where the interrupted fiber goes on, on a fresh stack.
void Landed() {
  worker->run()->fault = fault_signal == SIGSEGV || fault_signal == SIGBUS;
  const uintptr_t address = worker->fault_address;
  const Site site = Site::Address(reinterpret_cast<const void*>(fault_pc + 1));
  if (fault_signal == SIGFPE) {
    Fail("fault", site,
         "an integer divided by zero, or the least by -1: on a GPU without a meaning");
  }
  if (fault_signal == SIGILL) {
    Fail("fault", site, "a trap: what the compiler puts where a program must not come");
  }
  Fail("fault", site, "memory fault at %p: %s", reinterpret_cast<void*>(address),
       Describe(address).c_str());
}

void Chain(int signal, siginfo_t* info, void* context) {
  size_t at = 0;
  while (kSignals[at] != signal) ++at;
  const struct sigaction& old = previous[at];
  if ((old.sa_flags & SA_SIGINFO) != 0) {
    old.sa_sigaction(signal, info, context);
  } else if (old.sa_handler != SIG_DFL && old.sa_handler != SIG_IGN) {
    old.sa_handler(signal);
  } else {
    // Returning runs the same instruction again, under the default action.
    sigaction(signal, &old, nullptr);
  }
}

void OnFault(int signal, siginfo_t* info, void* context) {
  if (worker == nullptr || (current == nullptr && !worker->in_extension)) {
    Chain(signal, info, context);
    return;
  }
  worker->fault_address = reinterpret_cast<uintptr_t>(info->si_addr);
  fault_signal = signal;
  auto* machine = &static_cast<ucontext_t*>(context)->uc_mcontext;
  // A fiber's own stack may be what is full; nothing on it is needed any more.
  const Fiber* fiber = CurrentFiber();
  uintptr_t stack =
      fiber == nullptr ? 0
                       : reinterpret_cast<uintptr_t>(fiber->block_state->stacks.Top(fiber->linear));
#if defined(__x86_64__)
  fault_pc = static_cast<uintptr_t>(machine->gregs[REG_RIP]);
  if (stack == 0) stack = static_cast<uintptr_t>(machine->gregs[REG_RSP]) - 256;
  machine->gregs[REG_RSP] = static_cast<greg_t>((stack & ~uintptr_t{15}) - 8);
  machine->gregs[REG_RIP] = static_cast<greg_t>(reinterpret_cast<uintptr_t>(&Landed));
#elif defined(__aarch64__)
  fault_pc = machine->pc;
  if (stack == 0) stack = machine->sp - 256;
  machine->sp = stack & ~uintptr_t{15};
  machine->pc = reinterpret_cast<uintptr_t>(&Landed);
#endif
}
#endif  // AddressSanitizer has handlers of its own

}  // namespace

FaultGuard::FaultGuard() {
#if !defined(__SANITIZE_ADDRESS__)
  for (size_t i = 0; i < kSignalCount; ++i) {
    struct sigaction action{};
    action.sa_sigaction = OnFault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigemptyset(&action.sa_mask);
    sigaction(kSignals[i], &action, &previous[i]);
  }
#endif
}

FaultGuard::~FaultGuard() {
#if !defined(__SANITIZE_ADDRESS__)
  for (size_t i = 0; i < kSignalCount; ++i) {
    struct sigaction now{};
    sigaction(kSignals[i], nullptr, &now);
    if ((now.sa_flags & SA_SIGINFO) != 0 && now.sa_sigaction == OnFault) {
      sigaction(kSignals[i], &previous[i], nullptr);
    }
  }
#endif
}

SignalStack::SignalStack() {
  stack_t now{};
  if (sigaltstack(nullptr, &now) != 0 || (now.ss_flags & SS_DISABLE) == 0) return;
  constexpr size_t kBytes = 65536;
  struct Memory {
    void* base = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ~Memory() {
      if (base != MAP_FAILED) munmap(base, kBytes);
    }
  };
  static thread_local const Memory memory;
  if (memory.base == MAP_FAILED) return;
  stack_t ours{};
  ours.ss_sp = memory.base;
  ours.ss_size = kBytes;
  ours_ = sigaltstack(&ours, nullptr) == 0;
}

SignalStack::~SignalStack() {
  if (!ours_) return;
  stack_t none{};
  none.ss_flags = SS_DISABLE;
  sigaltstack(&none, nullptr);
}

}  // namespace lowrank::emu
