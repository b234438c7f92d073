#include "native/core/ops/ops.h"

#include <cmath>
#include <cstring>

#include "native/core/ops/op_checks.h"

namespace lowrank {

Status QuantizeOp::Check() const {
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "w", w, w.rows, w.cols));
  LOWRANK_RETURN_IF_ERROR(CheckQuant(kName, "out", out));
  if (out.planar()) {
    return Refuse(Code::kUnsupported, kName, "out", "a blockwise format", out.Describe());
  }
  if (out.rows != w.rows || out.cols != w.cols) {
    return Refuse(Code::kShape, kName, "out", Shape(w.rows, w.cols), Shape(out.rows, out.cols));
  }
  return Ranges().Out("out", out).In("w", w).CheckApart(kName);
}
std::string QuantizeOp::Describe() const {
  return std::string(kName) + " w " + w.Describe() + " -> " + out.Describe();
}

Status DequantizeOp::Check() const {
  LOWRANK_RETURN_IF_ERROR(CheckQuant(kName, "w", w));
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "y", y, w.rows, w.cols));
  return Ranges().Out("y", y).In("w", w).CheckApart(kName);
}
std::string DequantizeOp::Describe() const {
  return std::string(kName) + " w " + w.Describe() + " -> " + y.Describe();
}

Status MatmulOp::Check() const {
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "x", x, x.rows, x.cols));
  LOWRANK_RETURN_IF_ERROR(CheckWeight(kName, w, x.dtype, "x"));
  LOWRANK_RETURN_IF_ERROR(CheckCompute(kName, compute, w));
  LOWRANK_RETURN_IF_ERROR(CheckInner(kName, "x", "K", w.cols(), x.cols, Shape(x.rows, x.cols)));
  LOWRANK_RETURN_IF_ERROR(CheckOptional(kName, "bias", bias, 1, w.rows()));
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "y", y, x.rows, w.rows()));
  LOWRANK_RETURN_IF_ERROR(CheckDType(kName, "y", y, x.dtype));
  return Ranges().Out("y", y).In("x", x).In("w", w).In("bias", bias).CheckApart(kName);
}
std::string MatmulOp::Describe() const {
  return std::string(kName) + " x " + x.Describe() + " w " + w.Describe() + " bias " +
         bias.Describe() + ComputeSuffix(compute);
}

Status MatmulInputGradOp::Check() const {
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "dy", dy, dy.rows, dy.cols));
  LOWRANK_RETURN_IF_ERROR(CheckWeight(kName, w, dy.dtype, "dy"));
  LOWRANK_RETURN_IF_ERROR(CheckInner(kName, "dy", "N", w.rows(), dy.cols, Shape(dy.rows, dy.cols)));
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "dx", dx, dy.rows, w.cols()));
  LOWRANK_RETURN_IF_ERROR(CheckDType(kName, "dx", dx, dy.dtype));
  return Ranges().Out("dx", dx).In("dy", dy).In("w", w).CheckApart(kName);
}
std::string MatmulInputGradOp::Describe() const {
  return std::string(kName) + " dy " + dy.Describe() + " w " + w.Describe();
}

namespace {

/// Operands that a part without an adapter lacks are skipped.
void AddRanges(const LoraForwardOp& part, const char* y, Ranges* ranges) {
  ranges->Out(y, part.y).Out("h", part.h).In("x", part.x).In("w", part.w).In("bias", part.bias);
  ranges->In("loraA", part.lora_a).In("loraB", part.lora_b).In("loraBias", part.lora_bias);
  ranges->In("dropoutMask", part.dropout.mask);
}

}  // namespace

Status LoraForwardOp::Check() const {
  const int64_t m = x.rows;
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "x", x, m, x.cols));
  LOWRANK_RETURN_IF_ERROR(CheckWeight(kName, w, x.dtype, "x"));
  LOWRANK_RETURN_IF_ERROR(CheckCompute(kName, compute, w));
  LOWRANK_RETURN_IF_ERROR(CheckInner(kName, "x", "K", w.cols(), x.cols, Shape(m, x.cols)));
  const int64_t r = lora_a.rows;
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "loraA", lora_a, r, x.cols));
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "loraB", lora_b, w.rows(), r));
  LOWRANK_RETURN_IF_ERROR(CheckCompatible(kName, "loraA", lora_a.dtype, "x", x.dtype));
  LOWRANK_RETURN_IF_ERROR(CheckCompatible(kName, "loraB", lora_b.dtype, "x", x.dtype));
  LOWRANK_RETURN_IF_ERROR(CheckOptional(kName, "bias", bias, 1, w.rows()));
  LOWRANK_RETURN_IF_ERROR(CheckOptional(kName, "loraBias", lora_bias, 1, w.rows()));
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "h", h, m, r));
  LOWRANK_RETURN_IF_ERROR(CheckDType(kName, "h", h, DType::kF32));
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "y", y, m, w.rows()));
  LOWRANK_RETURN_IF_ERROR(CheckDType(kName, "y", y, x.dtype));
  LOWRANK_RETURN_IF_ERROR(CheckDropout(kName, dropout, m, x.cols));
  Ranges ranges;
  AddRanges(*this, "y", &ranges);
  LOWRANK_RETURN_IF_ERROR(ranges.CheckApart(kName));
  return CheckFactor(kName, "scaling", scaling);
}
std::string LoraForwardOp::Describe() const {
  return std::string(kName) + " x " + x.Describe() + " w " + w.Describe() + " r " +
         std::to_string(lora_a.rows) + " scaling " + std::to_string(scaling) + " dropout " +
         std::to_string(dropout.p) + ComputeSuffix(compute);
}

MatmulOp BaseOf(const LoraForwardOp& part) {
  MatmulOp base;
  base.x = part.x;
  base.w = part.w;
  base.bias = part.bias;
  base.y = part.y;
  base.compute = part.compute;
  return base;
}

namespace {

Status CheckPart(const LoraForwardOp& part) {
  return part.lora_a.present ? part.Check() : BaseOf(part).Check();
}
std::string DescribePart(const LoraForwardOp& part) {
  return part.lora_a.present ? part.Describe() : BaseOf(part).Describe();
}

}  // namespace

Status LoraForwardManyOp::Check() const {
  if (count < 1 || count > kMost) {
    return Refuse(Code::kValue, kName, "projections", "1 to " + std::to_string(kMost),
                  std::to_string(count));
  }
  Ranges ranges;
  for (int64_t i = 0; i < count; ++i) {
    LOWRANK_RETURN_IF_ERROR(CheckPart(parts[i]));
    AddRanges(parts[i], "y", &ranges);
  }
  return ranges.CheckApart(kName);
}
std::string LoraForwardManyOp::Describe() const {
  std::string text = kName;
  for (int64_t i = 0; i < count; ++i) {
    text += " | " + DescribePart(parts[i]);
  }
  return text;
}

Status LoraForwardSwigluOp::Check() const {
  if (gate.w.rows() != up.w.rows()) {
    return Refuse(Code::kShape, kName, "up.w", "[N = " + std::to_string(gate.w.rows()) + ", K]",
                  Shape(up.w.rows(), up.w.cols()));
  }
  if (gate.y.present != up.y.present) {
    return Refuse(Code::kValue, kName, "up.y", "given exactly if gate.y is", "only one of them");
  }
  for (const LoraForwardOp* part : {&gate, &up}) {
    LoraForwardOp whole = *part;
    if (!whole.y.present) whole.y = y;
    LOWRANK_RETURN_IF_ERROR(CheckPart(whole));
  }
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "up.x", up.x, gate.x.rows, gate.x.cols));
  LOWRANK_RETURN_IF_ERROR(CheckDType(kName, "up.x", up.x, gate.x.dtype));
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "y", y, gate.x.rows, gate.w.rows()));
  LOWRANK_RETURN_IF_ERROR(CheckDType(kName, "y", y, gate.x.dtype));
  Ranges ranges;
  AddRanges(gate, "gate.y", &ranges);
  AddRanges(up, "up.y", &ranges);
  return ranges.Out("y", y).CheckApart(kName);
}
std::string LoraForwardSwigluOp::Describe() const {
  return std::string(kName) + " | " + DescribePart(gate) + " | " + DescribePart(up);
}

Status LoraBackwardOp::Check() const {
  const int64_t m = dy.rows;
  const int64_t n = dy.cols;
  const int64_t k = lora_a.cols;
  const int64_t r = lora_a.rows;
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "dy", dy, m, n));
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "loraA", lora_a, r, k));
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "loraB", lora_b, n, r));
  LOWRANK_RETURN_IF_ERROR(CheckCompatible(kName, "loraA", lora_a.dtype, "dy", dy.dtype));
  LOWRANK_RETURN_IF_ERROR(CheckCompatible(kName, "loraB", lora_b.dtype, "dy", dy.dtype));
  if (dx.present) {
    LOWRANK_RETURN_IF_ERROR(CheckWeight(kName, w, dy.dtype, "dy"));
    LOWRANK_RETURN_IF_ERROR(CheckInner(kName, "dy", "N", w.rows(), n, Shape(m, n)));
    LOWRANK_RETURN_IF_ERROR(CheckInner(kName, "loraA", "K", w.cols(), k, Shape(r, k)));
    LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "dx", dx, m, k));
    LOWRANK_RETURN_IF_ERROR(CheckDType(kName, "dx", dx, dy.dtype));
  }
  if (d_lora_a.present) {
    LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "x", x, m, k));
    LOWRANK_RETURN_IF_ERROR(CheckDType(kName, "x", x, dy.dtype));
    LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "dLoraA", d_lora_a, r, k));
  }
  if (d_lora_b.present) {
    LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "h", h, m, r));
    LOWRANK_RETURN_IF_ERROR(CheckDType(kName, "h", h, DType::kF32));
    LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "dLoraB", d_lora_b, n, r));
  }
  LOWRANK_RETURN_IF_ERROR(CheckOptional(kName, "dBias", d_bias, 1, n));
  LOWRANK_RETURN_IF_ERROR(CheckOptional(kName, "dLoraBias", d_lora_bias, 1, n));
  LOWRANK_RETURN_IF_ERROR(CheckDropout(kName, dropout, m, k));
  LOWRANK_RETURN_IF_ERROR(Ranges()
                              .Out("dx", dx)
                              .Out("dLoraA", d_lora_a)
                              .Out("dLoraB", d_lora_b)
                              .Out("dBias", d_bias)
                              .Out("dLoraBias", d_lora_bias)
                              .In("dy", dy)
                              .In("x", x)
                              .In("w", w)
                              .In("loraA", lora_a)
                              .In("loraB", lora_b)
                              .In("h", h)
                              .In("dropoutMask", dropout.mask)
                              .CheckApart(kName));
  return CheckFactor(kName, "scaling", scaling);
}
std::string LoraBackwardOp::Describe() const {
  std::string needs;
  if (dx.present) needs += " dx";
  if (d_lora_a.present) needs += " dLoraA";
  if (d_lora_b.present) needs += " dLoraB";
  if (d_bias.present) needs += " dBias";
  return std::string(kName) + " dy " + dy.Describe() + " K " + std::to_string(lora_a.cols) + " r " +
         std::to_string(lora_a.rows) + " needs" + needs;
}

Status CastOp::Check() const {
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "src", src, src.rows, src.cols));
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "dst", dst, src.rows, src.cols));
  return Ranges().Out("dst", dst).In("src", src).CheckApart(kName);
}
std::string CastOp::Describe() const {
  return std::string(kName) + " " + src.Describe() + " -> " + DTypeName(dst.dtype);
}

Status RandomOp::Check() const {
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "y", y, y.rows, y.cols));
  if (!std::isfinite(mean)) {
    return Refuse(Code::kValue, kName, "mean", "finite", std::to_string(mean));
  }
  if (!std::isfinite(scale) || scale < 0) {
    return Refuse(Code::kValue, kName, "std", "finite and not negative", std::to_string(scale));
  }
  if (kind == Kind::kKeep && !(mean >= 0 && mean < 1)) {
    return Refuse(Code::kValue, kName, "p", "in [0, 1)", std::to_string(mean));
  }
  if (!seed_at.present) return Status();
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "seed", seed_at, 1, 2));
  if (seed_at.dtype != DType::kF32) {
    return Refuse(Code::kDtype, kName, "seed", "f32", DTypeName(seed_at.dtype));
  }
  if (reinterpret_cast<uintptr_t>(seed_at.data) % sizeof(uint64_t) != 0) {
    return Refuse(Code::kValue, kName, "seed", "at an address that is a multiple of 8", "another");
  }
  return Status();
}
std::string RandomOp::Describe() const {
  constexpr const char* kKinds[] = {" normal ", " uniform ", " keep "};
  // How full() and zeros() fill a tensor.
  if (kind == Kind::kUniform && scale == 0) return "fill " + y.Describe();
  return std::string(kName) + kKinds[static_cast<int>(kind)] + y.Describe();
}
uint64_t RandomOp::SeedNow() const {
  uint64_t added = 0;
  if (seed_at.present) std::memcpy(&added, seed_at.data, sizeof(added));
  return seed + added;
}

}  // namespace lowrank
