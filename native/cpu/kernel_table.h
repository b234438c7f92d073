/// The seam between the CPU backend and its kernels: one function per op, one table per instruction
/// set. A table is filled by compiling the same bodies with that set's flags.
#pragma once

#include "native/core/ops/ops.h"
#include "native/core/runtime/backend.h"
#include "native/cpu/route.h"
#include "native/cpu/thread_pool.h"

namespace lowrank::cpu {

/// What a running op may use. `cancel` may be null. A kernel polls it once per tile and then
/// returns kCancelled.
struct RunContext {
  ThreadPool* pool;
  const CancelToken* cancel;
  bool cancelled() const { return cancel != nullptr && cancel->cancelled(); }
};

/// The routes of an op, which has passed Check() and has rows; nothing runs (layers/routes.h).
struct RouteTable {
  ProductRoutes (*forward)(const MatmulOp& op);
  ProductRoutes (*input_grad)(const MatmulInputGradOp& op, bool with_d_lora_b, int threads);
};

struct KernelTable {
  const char* isa;  // the name in LOWRANK_ISA; kernel_select.cpp lists all
#define LOWRANK_KERNEL_MEMBER(Name, member) \
  Status (*member)(const Name##Op& op, const RunContext& context);
  LOWRANK_FOR_EACH_OP(LOWRANK_KERNEL_MEMBER)
#undef LOWRANK_KERNEL_MEMBER
  const RouteTable* routes = nullptr;  // null where there is one way only
};

/// Plain loops with double accumulation: the device "reference".
extern const KernelTable kReferenceKernels;

/// The best table that this processor can run, or the one that `forced_isa` (LOWRANK_ISA; may be
/// null) names. Null, with a `reason` in words, if that one is unknown or cannot run here.
const KernelTable* SelectKernels(const char* forced_isa, std::string* reason);

/// The table of the set with this name, which is `known` if there is such a set. Null if it cannot
/// run here: `expected` then says which sets can, what was asked for, and what it lacks.
const KernelTable* FindKernels(const std::string& isa, bool* known, std::string* expected);

/// The sets better than `isa`, best first, and why each is not used: "avx512-amx: the processor has
/// no amx-tile". `forced_isa` as above.
std::vector<std::string> BetterKernels(const char* isa, const char* forced_isa);

}  // namespace lowrank::cpu
