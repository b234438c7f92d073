/// The two host devices of the registry: "cpu" with the best kernels that run on this machine, and
/// "reference" with plain loops. Both are made on first use and never destroyed: their threads
/// outlive every environment, and a process may end while a kernel runs.
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <string>
#include <vector>

#include "native/core/quant_format.h"
#include "native/core/runtime/registry.h"
#include "native/cpu/host_backend.h"
#include "native/cpu/usable_cores.h"

namespace lowrank {
namespace {

constexpr int kMaxThreads = 256;

/// The first of these environment variables that holds a positive number, otherwise the cores.
int ThreadsFromEnvironment() {
  for (const char* name : {"LOWRANK_NUM_THREADS", "OMP_NUM_THREADS"}) {
    const char* value = std::getenv(name);
    if (value == nullptr) continue;
    char* end = nullptr;
    const long threads = std::strtol(value, &end, 10);
    if (end != value && threads >= 1) return static_cast<int>(std::min<long>(threads, kMaxThreads));
  }
  return std::min(cpu::UsableCores(), kMaxThreads);
}

int64_t MemoryBytes() {
  const int64_t pages = sysconf(_SC_PHYS_PAGES);
  const int64_t page_bytes = sysconf(_SC_PAGESIZE);
  return pages > 0 && page_bytes > 0 ? pages * page_bytes : 0;
}

std::vector<std::string> HostFeatures() {
  std::vector<std::string> features = FormatNames();
  features.insert(features.end(),
                  {"doubleQuant", "f32", "bf16", "f16", "int8Compute", "rowInt8Compute"});
  return features;
}

cpu::HostBackend* TheCpu() {
  static cpu::HostBackend* backend = [] {
    DeviceInfo info;
    info.device = "cpu";
    info.memory_bytes = MemoryBytes();
    std::string reason;
    const char* forced = std::getenv("LOWRANK_ISA");
    if (forced != nullptr && forced[0] == '\0') forced = nullptr;
    const cpu::KernelTable* kernels = cpu::SelectKernels(forced, &reason);
    info.available = kernels != nullptr;
    info.reason = reason;
    info.name = "CPU, SIMD kernels";
    if (kernels == nullptr) kernels = cpu::SelectKernels(nullptr, &reason);
    info.isa = kernels->isa;
    info.better_isas = cpu::BetterKernels(kernels->isa, info.available ? forced : nullptr);
    info.features = HostFeatures();
    return new cpu::HostBackend(info, *kernels, ThreadsFromEnvironment());
  }();
  return backend;
}

}  // namespace

Backend* CpuBackend() { return TheCpu(); }

Backend* ReferenceBackend() {
  static Backend* backend = [] {
    DeviceInfo info;
    info.device = "reference";
    info.available = true;
    info.memory_bytes = MemoryBytes();
    info.name = "plain loops, double accumulation";
    info.isa = cpu::kReferenceKernels.isa;
    info.features = HostFeatures();
    return new cpu::HostBackend(info, cpu::kReferenceKernels, 1);
  }();
  return backend;
}

void SetCpuThreads(int threads) { TheCpu()->SetThreads(std::clamp(threads, 1, kMaxThreads)); }
int GetCpuThreads() { return TheCpu()->GetThreads(); }

}  // namespace lowrank
