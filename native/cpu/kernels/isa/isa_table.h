/// The table of one instruction set's kernels. It converts an outcome to a Status. Only for units
/// compiled for the base set (isa_kernels.h says why).
#pragma once

#include <string>

#include "native/cpu/kernels/isa/isa_kernels.h"

namespace lowrank::cpu {

inline Status ToStatus(const char* op, const Outcome& outcome) {
  switch (outcome.code) {
    case Code::kOk:
      return Status();
    case Code::kNonFinite:
      return Status(Code::kNonFinite, std::string(op) +
                                          ": w must be finite, got Inf or NaN at element " +
                                          std::to_string(outcome.index));
    case Code::kOom:
      return Status(Code::kOom, std::string(op) + ": no memory left for scratch");
    case Code::kCancelled:
      return Status(Code::kCancelled, std::string(op) + ": cancelled");
    default:
      return Status(outcome.code, std::string(op) + ": failed");
  }
}

/// What an op of a set returned, as a Status.
template <typename Op>
Status ToStatus(const Op& /*op*/, const Outcome& outcome) {
  return ToStatus(Op::kName, outcome);
}
inline Status ToStatus(const QuantizeOp& op, const Outcome& outcome) {
  // A finite value may be too large for f16.
  if (outcome.code == Code::kNonFinite && op.out.rowwise) {
    return Refuse(Code::kNonFinite, QuantizeOp::kName, "w", "finite in f16 (the weight is rowwise)",
                  "Inf or NaN at element " + std::to_string(outcome.index));
  }
  return ToStatus(QuantizeOp::kName, outcome);
}

inline Status ToStatus(const AttentionOp& op, const Outcome& outcome) {
  if (outcome.code == Code::kValue) return RefuseDocument(op.kName, op.shape, outcome.index);
  return ToStatus(AttentionOp::kName, outcome);
}
inline Status ToStatus(const AttentionBackwardOp& op, const Outcome& outcome) {
  if (outcome.code == Code::kValue) return RefuseDocument(op.kName, op.shape, outcome.index);
  return ToStatus(AttentionBackwardOp::kName, outcome);
}

inline Status RunRandom(const RandomOp& op, const RunContext& context) {
  return ToStatus(RandomOp::kName, RandomKernel(op, context));
}

/// @tparam kModel of the same set, or of the one before it that has the ops of a model
template <const IsaKernels& kIsa, const ModelKernels& kModel>
const KernelTable* Table(const char* name) {
  static const KernelTable table = {name,
#define LOWRANK_RUN(Name, member)                     \
  [](const Name##Op& op, const RunContext& context) { \
    return ToStatus(op, kIsa.member(op, context));    \
  },
                                    LOWRANK_FOR_EACH_ISA_OP(LOWRANK_RUN)
#undef LOWRANK_RUN
#define LOWRANK_RUN(Name, member)                          \
  [](const Name##Op& op, const RunContext& context) {      \
    return ToStatus(op, kModel.member(op, context, kIsa)); \
  },
                                        LOWRANK_FOR_EACH_MODEL_OP(LOWRANK_RUN)
#undef LOWRANK_RUN
                                            RunRandom,
                                    &kIsa.routes};
  return &table;
}

}  // namespace lowrank::cpu
