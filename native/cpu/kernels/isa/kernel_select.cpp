// Flags: -O3 -ffp-contract=off
//
// Selects the table of kernels for this processor.
#include <cerrno>
#include <string>
#include <system_error>
#include <vector>

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "native/cpu/kernels/isa/isa_table.h"

namespace lowrank::cpu {
namespace {

/// Why a set of kernels cannot run here, in words; empty if it can.
using MissingFn = std::string (*)();

struct Choice {
  const char* name;
  MissingFn missing;
  const KernelTable* (*table)(const char* name);
};

std::string Nothing() { return {}; }

#if defined(__x86_64__) || defined(_M_X64)
/// The features that the processor lacks.
class Lacks {
 public:
  Lacks& Need(bool there, const char* feature) {
    if (there) return *this;
    words_ += words_.empty() ? "the processor has no " : ", ";
    words_ += feature;
    return *this;
  }
  std::string words() const { return words_; }

 private:
  std::string words_;
};

Lacks& NeedAvx2(Lacks& lacks) {
  return lacks.Need(__builtin_cpu_supports("avx2"), "avx2")
      .Need(__builtin_cpu_supports("fma"), "fma")
      .Need(__builtin_cpu_supports("f16c"), "f16c");
}
Lacks& NeedAvx512(Lacks& lacks) {
  return NeedAvx2(lacks)
      .Need(__builtin_cpu_supports("avx512f"), "avx512f")
      .Need(__builtin_cpu_supports("avx512bw"), "avx512bw")
      .Need(__builtin_cpu_supports("avx512vl"), "avx512vl")
      .Need(__builtin_cpu_supports("avx512dq"), "avx512dq");
}
Lacks& NeedAvx512Vnni(Lacks& lacks) {
  return NeedAvx512(lacks).Need(__builtin_cpu_supports("avx512vnni"), "avx512vnni");
}
Lacks& NeedAvx512Bf16(Lacks& lacks) {
  return NeedAvx512Vnni(lacks)
      .Need(__builtin_cpu_supports("avx512vbmi"), "avx512vbmi")
      .Need(__builtin_cpu_supports("avx512bf16"), "avx512bf16");
}

template <Lacks& (*kNeed)(Lacks&)>
std::string Missing() {
  Lacks lacks;
  return kNeed(lacks).words();
}

/// The kernel saves a thread's tiles only for a process that has requested them.
std::string WhyNoTiles() {
#if defined(__linux__)
  constexpr int kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr int kTileData = 18;               // the state component
  static const int error = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0 ? 0 : errno;
  if (error == 0) return {};
  return "the kernel grants no tiles to this process (arch_prctl: " +
         std::generic_category().message(error) +
         "); Linux 5.16 or later does, unless a sandbox "
         "filters the call";
#else
  return "tiles are only supported on Linux";
#endif
}
std::string MissingForAmx() {
  Lacks lacks;
  NeedAvx512Bf16(lacks)
      .Need(__builtin_cpu_supports("amx-tile"), "amx-tile")
      .Need(__builtin_cpu_supports("amx-bf16"), "amx-bf16")
      .Need(__builtin_cpu_supports("amx-int8"), "amx-int8");
  return lacks.words().empty() ? WhyNoTiles() : lacks.words();
}
#endif

// Best first.
const Choice kChoices[] = {
#if defined(__x86_64__) || defined(_M_X64)
    {"avx512-amx", MissingForAmx, Table<avx512_amx::kKernels, avx512_amx::kModelKernels>},
    {"avx512-bf16", Missing<NeedAvx512Bf16>,
     Table<avx512_bf16::kKernels, avx512_bf16::kModelKernels>},
    {"avx512-vnni", Missing<NeedAvx512Vnni>, Table<avx512_vnni::kKernels, avx512::kModelKernels>},
    {"avx512", Missing<NeedAvx512>, Table<avx512::kKernels, avx512::kModelKernels>},
    {"avx2", Missing<NeedAvx2>, Table<avx2::kKernels, avx2::kModelKernels>},
#elif defined(__aarch64__)
    {"neon", Nothing, Table<neon::kKernels, neon::kModelKernels>},
#endif
    {"portable", Nothing, Table<portable::kKernels, portable::kModelKernels>},
};

}  // namespace

const KernelTable* SelectKernels(const char* forced_isa, std::string* reason) {
  if (forced_isa != nullptr && forced_isa[0] != '\0') {
    std::string expected;
    bool known = false;
    const KernelTable* kernels = FindKernels(forced_isa, &known, &expected);
    if (kernels == nullptr && reason != nullptr) *reason = "LOWRANK_ISA must be " + expected;
    return kernels;
  }
  for (const Choice& choice : kChoices) {
    if (choice.missing().empty()) return choice.table(choice.name);
  }
  return nullptr;  // never: the last set runs everywhere
}

const KernelTable* FindKernels(const std::string& isa, bool* known, std::string* expected) {
  std::string why;
  *known = false;
  for (const Choice& choice : kChoices) {
    // Sets that are not wanted are not tested: using tiles needs a permission.
    if (isa != choice.name) continue;
    *known = true;
    why = choice.missing();
    if (why.empty()) return choice.table(choice.name);
    why.insert(0, ": ");
  }
  std::string here;
  for (const Choice& choice : kChoices) {
    if (!choice.missing().empty()) continue;
    here += here.empty() ? choice.name : std::string(", ") + choice.name;
  }
  *expected = "one of those that run on this processor (" + here + "), got \"" + isa + "\"" + why;
  return nullptr;
}

std::vector<std::string> BetterKernels(const char* isa, const char* forced_isa) {
  std::vector<std::string> better;
  const bool forced = forced_isa != nullptr && forced_isa[0] != '\0';
  for (const Choice& choice : kChoices) {
    if (std::string(isa) == choice.name) break;
    const std::string why = forced ? "LOWRANK_ISA asks for " + std::string(isa) : choice.missing();
    better.push_back(std::string(choice.name) + ": " + why);
  }
  return better;
}

}  // namespace lowrank::cpu
