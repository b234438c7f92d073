// Flags: -O3 -ffp-contract=off
//
// Which table of kernels this processor runs.
#include <string>

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "native/cpu/kernels/isa_table.h"

namespace lowrank::cpu {
namespace {

struct Choice {
  const char* name;
  bool (*runs_here)();
  const KernelTable* (*table)(const char* name);
};

bool Always() { return true; }

#if defined(__x86_64__) || defined(_M_X64)
bool HasAvx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}
bool HasAvx512() {
  return HasAvx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
bool HasAvx512Bf16() {
  return HasAvx512() && __builtin_cpu_supports("avx512bf16") &&
         __builtin_cpu_supports("avx512vnni");
}

/// The kernel saves a thread's tiles only for a process that has asked for them.
bool MayUseTiles() {
#if defined(__linux__)
  constexpr int kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr int kTileData = 18;               // the state component
  static const bool granted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return granted;
#else
  return false;
#endif
}
bool HasAmx() {
  return HasAvx512Bf16() && __builtin_cpu_supports("amx-tile") &&
         __builtin_cpu_supports("amx-bf16") && MayUseTiles();
}
#endif

// Best first.
const Choice kChoices[] = {
#if defined(__x86_64__) || defined(_M_X64)
    {"avx512-amx", HasAmx, Table<avx512_amx::kKernels>},
    {"avx512-bf16", HasAvx512Bf16, Table<avx512_bf16::kKernels>},
    {"avx512", HasAvx512, Table<avx512::kKernels>},
    {"avx2", HasAvx2, Table<avx2::kKernels>},
#elif defined(__aarch64__)
    {"neon", Always, Table<neon::kKernels>},
#endif
    {"portable", Always, Table<portable::kKernels>},
};

}  // namespace

const KernelTable* SelectKernels(const char* forced_isa, std::string* reason) {
  const bool forced = forced_isa != nullptr && forced_isa[0] != '\0';
  for (const Choice& choice : kChoices) {
    // Of a set that is not wanted nothing is asked: to run tiles takes a permission.
    if (forced && std::string(forced_isa) != choice.name) continue;
    if (choice.runs_here()) return choice.table(choice.name);
  }
  if (reason != nullptr) {
    std::string here;
    for (const Choice& choice : kChoices) {
      if (choice.runs_here()) here += here.empty() ? choice.name : std::string(", ") + choice.name;
    }
    *reason = "LOWRANK_ISA must be one of those that run on this processor (" + here + "), got \"" +
              forced_isa + "\"";
  }
  return nullptr;
}

}  // namespace lowrank::cpu
