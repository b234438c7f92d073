/// A layer of experts.
#include "native/core/ops/expert_ops.h"

#include <limits>

#include "native/core/ops/op_checks.h"

namespace lowrank {
namespace {

constexpr int64_t kMostSlots = std::numeric_limits<int32_t>::max();

Status CheckCounts(const char* op, int64_t k, int64_t experts) {
  if (experts < 1 || experts > kMostExperts) {
    return Refuse(Code::kValue, op, "experts", "from 1 to " + std::to_string(kMostExperts),
                  std::to_string(experts));
  }
  if (k < 1 || k > experts) {
    return Refuse(Code::kValue, op, "k", "from 1 to the " + std::to_string(experts) + " experts",
                  std::to_string(k));
  }
  return Status();
}

Status CheckSize(const char* op, const char* operand, int64_t expected, int64_t actual) {
  if (expected == actual) return Status();
  return Refuse(Code::kShape, op, operand, std::to_string(expected) + " indices",
                std::to_string(actual));
}

/// Indices of the route may be read at, so that a kernel stays within the slots.
Status CheckRoute(const char* op, const RouteView& route) {
  LOWRANK_RETURN_IF_ERROR(CheckCounts(op, route.k, route.experts));
  if (route.rows < 0 || route.rows > kMostSlots / route.k) {
    return Refuse(Code::kShape, op, "route", "of fewer than 2^31 slots",
                  std::to_string(route.rows) + " rows of " + std::to_string(route.k));
  }
  const int64_t slots = route.slots();
  struct Part {
    const char* name;
    const IndexView& view;
    int64_t count;
    int64_t limit;
  };
  const Part parts[] = {{"route.order", route.order, slots, slots},
                        {"route.inverse", route.inverse, slots, slots},
                        {"route.offsets", route.offsets, route.experts + 1, slots + 1}};
  for (const Part& part : parts) {
    LOWRANK_RETURN_IF_ERROR(CheckSize(op, part.name, part.count, part.view.count));
    if (part.view.limit > part.limit) {
      return Refuse(Code::kValue, op, part.name, "indices below " + std::to_string(part.limit),
                    "a limit of " + std::to_string(part.view.limit));
    }
  }
  return Status();
}

Ranges& AddRoute(const RouteView& route, Ranges* ranges) {
  return ranges->In("route", route.order).In("route", route.inverse).In("route", route.offsets);
}

std::string DescribeRoute(const RouteView& route) {
  return " rows " + std::to_string(route.rows) + " of " + std::to_string(route.k) + " of " +
         std::to_string(route.experts) + " experts";
}

/// A group never crosses experts: each begins with a block of scales.
Status CheckExpertRows(const char* op, const WeightView& w, int64_t experts) {
  if (w.rows() % experts != 0) {
    return Refuse(Code::kShape, op, "w",
                  "of rows that " + std::to_string(experts) + " experts divide", w.Describe());
  }
  const int64_t rows = w.rows() / experts;
  if (!w.quantised() || experts == 1 || w.cols() == 0 || rows % w.quant.RowStep() == 0) {
    return Status();
  }
  return Refuse(Code::kShape, op, "w",
                "of experts that begin with a block of scales: a multiple of " +
                    std::to_string(w.quant.RowStep()) + " rows each",
                std::to_string(rows) + " rows each");
}

struct Factors {
  const TensorView& lora_a;
  const TensorView& lora_b;
  int64_t r() const { return lora_b.cols; }
};

/// [experts · rows, cols] or [rows, cols].
Status CheckFactorRows(const char* op, const char* operand, const TensorView& view, int64_t experts,
                       int64_t rows, int64_t cols) {
  const int64_t given = view.rows == rows ? rows : experts * rows;
  return CheckMatrix(op, operand, view, given, cols);
}

Status CheckFactors(const char* op, const Factors& factors, const WeightView& w, int64_t experts,
                    float scaling, const char* beside, DType dtype) {
  const auto& [lora_a, lora_b] = factors;
  if (lora_a.present != lora_b.present) {
    return Refuse(Code::kValue, op, "loraB", "given with loraA, and only with it", "one of them");
  }
  if (!lora_a.present) return Status();
  LOWRANK_RETURN_IF_ERROR(CheckFactorRows(op, "loraA", lora_a, experts, factors.r(), w.cols()));
  LOWRANK_RETURN_IF_ERROR(
      CheckFactorRows(op, "loraB", lora_b, experts, w.rows() / experts, factors.r()));
  LOWRANK_RETURN_IF_ERROR(CheckCompatible(op, "loraA", lora_a.dtype, beside, dtype));
  LOWRANK_RETURN_IF_ERROR(CheckCompatible(op, "loraB", lora_b.dtype, beside, dtype));
  return CheckFactor(op, "scaling", scaling);
}

}  // namespace

Status RouteRowsOp::Check() const {
  LOWRANK_RETURN_IF_ERROR(CheckCounts(kName, k, experts));
  if (!chosen.present) return Refuse(Code::kType, kName, "experts", "given", "none");
  if (chosen.count % k != 0 || chosen.count > kMostSlots) {
    return Refuse(Code::kShape, kName, "experts",
                  "a multiple of " + std::to_string(k) + " indices, fewer than 2^31",
                  std::to_string(chosen.count));
  }
  LOWRANK_RETURN_IF_ERROR(CheckSize(kName, "order", chosen.count, order.count));
  LOWRANK_RETURN_IF_ERROR(CheckSize(kName, "inverse", chosen.count, inverse.count));
  LOWRANK_RETURN_IF_ERROR(CheckSize(kName, "offsets", experts + 1, offsets.count));
  return Ranges()
      .Out("order", order)
      .Out("inverse", inverse)
      .Out("offsets", offsets)
      .In("experts", chosen)
      .CheckApart(kName);
}
std::string RouteRowsOp::Describe() const {
  return std::string(kName) + " experts " + chosen.Describe() + " k " + std::to_string(k) + " of " +
         std::to_string(experts);
}

Status SelectExpertsOp::Check() const {
  LOWRANK_RETURN_IF_ERROR(CheckCounts(kName, gates.cols, logits.cols));
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "logits", logits, logits.rows, logits.cols));
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "gates", gates, logits.rows, gates.cols));
  LOWRANK_RETURN_IF_ERROR(CheckDType(kName, "gates", gates, DType::kF32));
  LOWRANK_RETURN_IF_ERROR(CheckSize(kName, "experts", gates.elems(), chosen.count));
  return Ranges().Out("experts", chosen).Out("gates", gates).In("logits", logits).CheckApart(kName);
}
std::string SelectExpertsOp::Describe() const {
  return std::string(kName) + " logits " + logits.Describe() + " k " + std::to_string(gates.cols);
}

Status SelectExpertsBackwardOp::Check() const {
  LOWRANK_RETURN_IF_ERROR(CheckCounts(kName, gates.cols, logits.cols));
  const int64_t M = logits.rows;
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "logits", logits, M, logits.cols));
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "gates", gates, M, gates.cols));
  LOWRANK_RETURN_IF_ERROR(CheckDType(kName, "gates", gates, DType::kF32));
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "dGates", d_gates, M, gates.cols));
  LOWRANK_RETURN_IF_ERROR(CheckDType(kName, "dGates", d_gates, DType::kF32));
  LOWRANK_RETURN_IF_ERROR(CheckSize(kName, "experts", gates.elems(), chosen.count));
  if (chosen.limit > logits.cols) {
    return Refuse(Code::kValue, kName, "experts",
                  "indices below the " + std::to_string(logits.cols) + " experts",
                  "a limit of " + std::to_string(chosen.limit));
  }
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "dLogits", d_logits, M, logits.cols));
  LOWRANK_RETURN_IF_ERROR(CheckDType(kName, "dLogits", d_logits, logits.dtype));
  return Ranges()
      .Out("dLogits", d_logits)
      .In("logits", logits)
      .In("gates", gates)
      .In("dGates", d_gates)
      .In("experts", chosen)
      .CheckApart(kName);
}
std::string SelectExpertsBackwardOp::Describe() const {
  return std::string(kName) + " logits " + logits.Describe() + " k " + std::to_string(gates.cols);
}

Status ExpertsForwardOp::Check() const {
  LOWRANK_RETURN_IF_ERROR(CheckRoute(kName, route));
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "x", x, gather ? route.rows : route.slots(), x.cols));
  LOWRANK_RETURN_IF_ERROR(CheckWeight(kName, w, x.dtype, "x"));
  LOWRANK_RETURN_IF_ERROR(CheckExpertRows(kName, w, route.experts));
  LOWRANK_RETURN_IF_ERROR(CheckInner(kName, "x", "K", w.cols(), x.cols, Shape(x.rows, x.cols)));
  const int64_t n = w.rows() / route.experts;
  LOWRANK_RETURN_IF_ERROR(CheckOptional(kName, "bias", bias, route.experts, n));
  LOWRANK_RETURN_IF_ERROR(
      CheckFactors(kName, {lora_a, lora_b}, w, route.experts, scaling, "x", x.dtype));
  if (lora_a.present) {
    LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "h", h, route.slots(), lora_b.cols));
    LOWRANK_RETURN_IF_ERROR(CheckDType(kName, "h", h, DType::kF32));
  }
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "y", y, route.slots(), n));
  LOWRANK_RETURN_IF_ERROR(CheckDType(kName, "y", y, x.dtype));
  Ranges ranges;
  AddRoute(route, &ranges);
  return ranges.Out("y", y)
      .Out("h", h)
      .In("x", x)
      .In("w", w)
      .In("bias", bias)
      .In("loraA", lora_a)
      .In("loraB", lora_b)
      .CheckApart(kName);
}
std::string ExpertsForwardOp::Describe() const {
  return std::string(kName) + " x " + x.Describe() + " w " + w.Describe() + DescribeRoute(route) +
         (lora_a.present ? " r " + std::to_string(lora_b.cols) : "");
}

Status ExpertsBackwardOp::Check() const {
  LOWRANK_RETURN_IF_ERROR(CheckRoute(kName, route));
  LOWRANK_RETURN_IF_ERROR(CheckWeight(kName, w, dy.dtype, "dy"));
  LOWRANK_RETURN_IF_ERROR(CheckExpertRows(kName, w, route.experts));
  const int64_t n = w.rows() / route.experts;
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "dy", dy, route.slots(), n));
  LOWRANK_RETURN_IF_ERROR(
      CheckFactors(kName, {lora_a, lora_b}, w, route.experts, scaling, "dy", dy.dtype));
  LOWRANK_RETURN_IF_ERROR(CheckOptional(kName, "dx", dx, route.slots(), w.cols()));
  if (dx.present) LOWRANK_RETURN_IF_ERROR(CheckDType(kName, "dx", dx, dy.dtype));
  if ((d_lora_a.present || d_lora_b.present) && !lora_a.present) {
    return Refuse(Code::kValue, kName, "dLoraA", "given only with loraA", "without it");
  }
  LOWRANK_RETURN_IF_ERROR(CheckOptional(kName, "dLoraA", d_lora_a, lora_a.rows, lora_a.cols));
  LOWRANK_RETURN_IF_ERROR(CheckOptional(kName, "dLoraB", d_lora_b, lora_b.rows, lora_b.cols));
  if (d_lora_a.present) {
    LOWRANK_RETURN_IF_ERROR(
        CheckMatrix(kName, "x", x, gather ? route.rows : route.slots(), w.cols()));
    LOWRANK_RETURN_IF_ERROR(CheckDType(kName, "x", x, dy.dtype));
  }
  if (d_lora_b.present) {
    LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "h", h, route.slots(), lora_b.cols));
    LOWRANK_RETURN_IF_ERROR(CheckDType(kName, "h", h, DType::kF32));
  }
  Ranges ranges;
  AddRoute(route, &ranges);
  return ranges.Out("dx", dx)
      .Out("dLoraA", d_lora_a)
      .Out("dLoraB", d_lora_b)
      .In("dy", dy)
      .In("x", x)
      .In("w", w)
      .In("loraA", lora_a)
      .In("loraB", lora_b)
      .In("h", h)
      .CheckApart(kName);
}
std::string ExpertsBackwardOp::Describe() const {
  return std::string(kName) + " dy " + dy.Describe() + " w " + w.Describe() + DescribeRoute(route) +
         (lora_a.present ? " r " + std::to_string(lora_b.cols) : "");
}

namespace {

Status CheckGates(const char* op, const char* operand, const TensorView& gates,
                  const RouteView& route) {
  LOWRANK_RETURN_IF_ERROR(CheckOptional(op, operand, gates, route.rows, route.k));
  return gates.present ? CheckDType(op, operand, gates, DType::kF32) : Status();
}

}  // namespace

Status CombineRowsOp::Check() const {
  LOWRANK_RETURN_IF_ERROR(CheckRoute(kName, route));
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "y", y, route.slots(), y.cols));
  LOWRANK_RETURN_IF_ERROR(CheckGates(kName, "gates", gates, route));
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "out", out, route.rows, y.cols));
  LOWRANK_RETURN_IF_ERROR(CheckDType(kName, "out", out, y.dtype));
  Ranges ranges;
  AddRoute(route, &ranges);
  return ranges.Out("out", out).In("y", y).In("gates", gates).CheckApart(kName);
}
std::string CombineRowsOp::Describe() const {
  return std::string(kName) + " y " + y.Describe() + DescribeRoute(route);
}

Status CombineRowsBackwardOp::Check() const {
  LOWRANK_RETURN_IF_ERROR(CheckRoute(kName, route));
  const int64_t slots = route.slots();
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "dOut", d_out, route.rows, d_out.cols));
  LOWRANK_RETURN_IF_ERROR(CheckGates(kName, "gates", gates, route));
  LOWRANK_RETURN_IF_ERROR(CheckOptional(kName, "dy", dy, slots, d_out.cols));
  LOWRANK_RETURN_IF_ERROR(CheckGates(kName, "dGates", d_gates, route));
  if (d_gates.present) LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "y", y, slots, d_out.cols));
  Ranges ranges;
  AddRoute(route, &ranges);
  return ranges.Out("dy", dy)
      .Out("dGates", d_gates)
      .In("dOut", d_out)
      .In("y", y)
      .In("gates", gates)
      .CheckApart(kName);
}
std::string CombineRowsBackwardOp::Describe() const {
  return std::string(kName) + " dOut " + d_out.Describe() + DescribeRoute(route);
}

}  // namespace lowrank
