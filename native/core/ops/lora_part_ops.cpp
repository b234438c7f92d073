/// The parts of a LoRA layer on either side of h, and the gradient of a small dense weight.
#include "native/core/ops/op_checks.h"

namespace lowrank {

Status LoraShrinkOp::Check() const {
  const int64_t m = x.rows;
  const int64_t k = x.cols;
  const int64_t r = lora_a.rows;
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "x", x, m, k));
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "loraA", lora_a, r, k));
  LOWRANK_RETURN_IF_ERROR(CheckCompatible(kName, "loraA", lora_a.dtype, "x", x.dtype));
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "h", h, m, r));
  LOWRANK_RETURN_IF_ERROR(CheckDType(kName, "h", h, DType::kF32));
  LOWRANK_RETURN_IF_ERROR(CheckDropout(kName, dropout, m, k));
  LOWRANK_RETURN_IF_ERROR(Ranges()
                              .Out("h", h)
                              .In("x", x)
                              .In("loraA", lora_a)
                              .In("dropoutMask", dropout.mask)
                              .CheckApart(kName));
  return CheckFactor(kName, "scaling", scaling);
}
std::string LoraShrinkOp::Describe() const {
  return std::string(kName) + " x " + x.Describe() + " r " + std::to_string(lora_a.rows) +
         " scaling " + std::to_string(scaling) + " dropout " + std::to_string(dropout.p);
}

FactoredNormOp LoraExpandOp::Norm() const {
  FactoredNormOp norm;
  norm.w = w;
  norm.lora_a = lora_a;
  norm.lora_b = lora_b;
  norm.squares = squares;
  norm.norms = norms;
  norm.product = x.dtype;
  norm.scaling = scaling;
  return norm;
}
Status LoraExpandOp::Check() const {
  const int64_t m = x.rows;
  const int64_t r = lora_b.cols;
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "x", x, m, x.cols));
  LOWRANK_RETURN_IF_ERROR(CheckWeight(kName, w, x.dtype, "x"));
  LOWRANK_RETURN_IF_ERROR(CheckCompute(kName, compute, w));
  LOWRANK_RETURN_IF_ERROR(CheckInner(kName, "x", "K", w.cols(), x.cols, Shape(m, x.cols)));
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "loraB", lora_b, w.rows(), r));
  LOWRANK_RETURN_IF_ERROR(CheckCompatible(kName, "loraB", lora_b.dtype, "x", x.dtype));
  LOWRANK_RETURN_IF_ERROR(CheckOptional(kName, "bias", bias, 1, w.rows()));
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "h", h, m, r));
  LOWRANK_RETURN_IF_ERROR(CheckDType(kName, "h", h, DType::kF32));
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "y", y, m, w.rows()));
  LOWRANK_RETURN_IF_ERROR(CheckDType(kName, "y", y, x.dtype));
  LOWRANK_RETURN_IF_ERROR(Ranges()
                              .Out("y", y)
                              .Out("norms", norms)
                              .In("x", x)
                              .In("w", w)
                              .In("bias", bias)
                              .In("h", h)
                              .In("loraB", lora_b)
                              .In("loraA", lora_a)
                              .In("weightNorms", squares)
                              .CheckApart(kName));
  if (norms.present) LOWRANK_RETURN_IF_ERROR(Norm().Check());
  return CheckFactor(kName, "scaling", scaling);
}
std::string LoraExpandOp::Describe() const {
  return std::string(kName) + " x " + x.Describe() + " w " + w.Describe() + " r " +
         std::to_string(lora_b.cols) + " scaling " + std::to_string(scaling) +
         ComputeSuffix(compute) + (norms.present ? " and norms" : "");
}

Status LoraExpandBackwardOp::Check() const {
  const int64_t m = dy.rows;
  const int64_t n = dy.cols;
  const int64_t r = lora_b.cols;
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "dy", dy, m, n));
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "loraB", lora_b, n, r));
  LOWRANK_RETURN_IF_ERROR(CheckCompatible(kName, "loraB", lora_b.dtype, "dy", dy.dtype));
  LOWRANK_RETURN_IF_ERROR(CheckOptional(kName, "dh", dh, m, r));
  LOWRANK_RETURN_IF_ERROR(CheckDType(kName, "dh", dh, DType::kF32));
  if (d_lora_b.present) {
    LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "h", h, m, r));
    LOWRANK_RETURN_IF_ERROR(CheckDType(kName, "h", h, DType::kF32));
    LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "dLoraB", d_lora_b, n, r));
  }
  LOWRANK_RETURN_IF_ERROR(CheckOptional(kName, "dBias", d_bias, 1, n));
  LOWRANK_RETURN_IF_ERROR(Ranges()
                              .Out("dh", dh)
                              .Out("dLoraB", d_lora_b)
                              .Out("dBias", d_bias)
                              .In("dy", dy)
                              .In("h", h)
                              .In("loraB", lora_b)
                              .CheckApart(kName));
  return CheckFactor(kName, "scaling", scaling);
}
std::string LoraExpandBackwardOp::Describe() const {
  std::string needs;
  if (dh.present) needs += " dh";
  if (d_lora_b.present) needs += " dLoraB";
  if (d_bias.present) needs += " dBias";
  return std::string(kName) + " dy " + dy.Describe() + " r " + std::to_string(lora_b.cols) +
         " needs" + needs;
}

Status LoraShrinkBackwardOp::Check() const {
  const int64_t m = dh.rows;
  const int64_t k = lora_a.cols;
  const int64_t r = lora_a.rows;
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "dh", dh, m, r));
  LOWRANK_RETURN_IF_ERROR(CheckDType(kName, "dh", dh, DType::kF32));
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "loraA", lora_a, r, k));
  if (dx.present) {
    LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "dy", dy, m, dy.cols));
    LOWRANK_RETURN_IF_ERROR(CheckWeight(kName, w, dy.dtype, "dy"));
    LOWRANK_RETURN_IF_ERROR(CheckInner(kName, "dy", "N", w.rows(), dy.cols, Shape(m, dy.cols)));
    LOWRANK_RETURN_IF_ERROR(CheckInner(kName, "loraA", "K", w.cols(), k, Shape(r, k)));
    LOWRANK_RETURN_IF_ERROR(CheckCompatible(kName, "loraA", lora_a.dtype, "dy", dy.dtype));
    LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "dx", dx, m, k));
    LOWRANK_RETURN_IF_ERROR(CheckDType(kName, "dx", dx, dy.dtype));
  }
  if (d_lora_a.present) {
    LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "x", x, m, k));
    LOWRANK_RETURN_IF_ERROR(CheckCompatible(kName, "loraA", lora_a.dtype, "x", x.dtype));
    LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "dLoraA", d_lora_a, r, k));
  }
  LOWRANK_RETURN_IF_ERROR(CheckDropout(kName, dropout, m, k));
  LOWRANK_RETURN_IF_ERROR(Ranges()
                              .Out("dx", dx)
                              .Out("dLoraA", d_lora_a)
                              .In("dy", dy)
                              .In("w", w)
                              .In("dh", dh)
                              .In("x", x)
                              .In("loraA", lora_a)
                              .In("dropoutMask", dropout.mask)
                              .CheckApart(kName));
  return CheckFactor(kName, "scaling", scaling);
}
std::string LoraShrinkBackwardOp::Describe() const {
  std::string needs;
  if (dx.present) needs += " dx";
  if (d_lora_a.present) needs += " dLoraA";
  return std::string(kName) + " dh " + dh.Describe() + " K " + std::to_string(lora_a.cols) +
         " needs" + needs;
}

Status WeightGradOp::Check() const {
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "dy", dy, dy.rows, dy.cols));
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "x", x, dy.rows, x.cols));
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "dW", dw, dy.cols, x.cols));
  return Ranges().Out("dW", dw).In("dy", dy).In("x", x).CheckApart(kName);
}
std::string WeightGradOp::Describe() const {
  return std::string(kName) + " dy " + dy.Describe() + " x " + x.Describe() + " -> " +
         dw.Describe();
}

}  // namespace lowrank
