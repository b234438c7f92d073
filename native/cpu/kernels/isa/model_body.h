/// The ops of a model around its linear layers, of one instruction set: included once by each
/// model_<isa>.cpp, which names the namespace (LOWRANK_ISA) and the set that computes what this one
/// does not (LOWRANK_MODEL_BASE), if there is one. A unit of its own beside body.h, so that either
/// compiles without the other.
#pragma once

// A unit uses only some of what the shared headers define.
#pragma GCC diagnostic ignored "-Wunused-function"

#include <type_traits>

#include "native/cpu/kernels/model/attention_backward.h"
#include "native/cpu/kernels/model/cross_entropy.h"
#include "native/cpu/kernels/model/embedding.h"
#include "native/cpu/kernels/model/experts.h"
#include "native/cpu/kernels/model/norm.h"
#include "native/cpu/kernels/model/optimizer.h"

namespace lowrank::cpu::LOWRANK_ISA {

extern const ModelKernels kModelKernels;

#if defined(LOWRANK_MODEL_BASE) && !defined(LOWRANK_WHOLE_SETS)
constexpr bool kHasModelBase = true;
LOWRANK_INLINE const ModelKernels& ModelBase() { return LOWRANK_MODEL_BASE::kModelKernels; }
#else
constexpr bool kHasModelBase = false;
LOWRANK_INLINE const ModelKernels& ModelBase() { return kModelKernels; }
#endif

/// Which calls of an op a set with a base computes itself. By default none.
template <typename Op>
struct OwnModel {
  static constexpr bool kSome = false;
  static bool Owns(const Op& /*op*/) { return false; }
};

/// A set with the dot product of pairs computes attention of bf16 itself.
template <typename Op>
struct OwnPairs {
  static constexpr bool kSome = kHasBF16Dot;
  static bool Owns(const Op& op) { return op.q.matrix.dtype == DType::kBF16; }
};
template <>
struct OwnModel<AttentionOp> : OwnPairs<AttentionOp> {};
template <>
struct OwnModel<AttentionBackwardOp> : OwnPairs<AttentionBackwardOp> {};

/// function(op, context), or with `products` where it takes them.
template <typename Function, typename Op>
LOWRANK_INLINE Outcome CallModel(Function* function, const Op& op, const RunContext& context,
                                 const IsaKernels& products) {
  if constexpr (std::is_invocable_v<Function*, const Op&, const RunContext&, const IsaKernels&>) {
    return function(op, context, products);
  } else {
    static_cast<void>(products);
    return function(op, context);
  }
}

extern const ModelKernels kModelKernels = {
#define LOWRANK_KERNEL_OF(Name, member)                                                \
  [](const Name##Op& op, const RunContext& context, const IsaKernels& products) {      \
    if constexpr (!kHasModelBase) {                                                    \
      return CallModel(Name, op, context, products);                                   \
    } else if constexpr (OwnModel<Name##Op>::kSome) {                                  \
      if (OwnModel<Name##Op>::Owns(op)) return CallModel(Name, op, context, products); \
    }                                                                                  \
    return ModelBase().member(op, context, products);                                  \
  },
    LOWRANK_FOR_EACH_MODEL_OP(LOWRANK_KERNEL_OF)
#undef LOWRANK_KERNEL_OF
};

}  // namespace lowrank::cpu::LOWRANK_ISA
