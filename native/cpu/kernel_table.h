/// The seam between the CPU backend and its kernels: one function per op, one table per instruction
/// set. A table is filled by compiling the same bodies with that set's flags.
#pragma once

#include "native/core/ops/ops.h"
#include "native/core/runtime/backend.h"
#include "native/cpu/thread_pool.h"

namespace lowrank::cpu {

/// What a running op may use. `cancel` may be null. A kernel polls it once per tile and then
/// returns kCancelled.
struct RunContext {
  ThreadPool* pool;
  const CancelToken* cancel;
  bool cancelled() const { return cancel != nullptr && cancel->cancelled(); }
};

struct KernelTable {
  const char* isa;  // the name in LOWRANK_ISA; kernel_select.cpp lists all
#define LOWRANK_KERNEL_MEMBER(Name, member) \
  Status (*member)(const Name##Op& op, const RunContext& context);
  LOWRANK_FOR_EACH_OP(LOWRANK_KERNEL_MEMBER)
#undef LOWRANK_KERNEL_MEMBER
};

/// Plain loops with double accumulation: the device "reference".
extern const KernelTable kReferenceKernels;

/// The best table that this processor can run, or the one that `forced_isa` (LOWRANK_ISA; may be
/// null) names. Null, with a `reason` in words, if that one is unknown or cannot run here.
const KernelTable* SelectKernels(const char* forced_isa, std::string* reason);

/// The sets better than `isa`, best first, and why each is not used: "avx512-amx: the processor has
/// no amx-tile". `forced_isa` as above.
std::vector<std::string> BetterKernels(const char* isa, const char* forced_isa);

}  // namespace lowrank::cpu
