/// Maps of features, products of blocks, norms and scales of weights.
#include "native/core/ops/op_checks.h"

namespace lowrank {
namespace {

Status CheckBlocks(const char* op, int64_t blocks) {
  if (blocks >= 0) return Status();
  return Refuse(Code::kShape, op, "blocks", "not negative", std::to_string(blocks));
}

/// Checks that every block has the same number of rows.
Status CheckEven(const char* op, const char* operand, const TensorView& view, int64_t blocks) {
  if (blocks == 0 ? view.rows == 0 : view.rows % blocks == 0) return Status();
  return Refuse(Code::kShape, op, operand, "of rows in " + std::to_string(blocks) + " blocks",
                Shape(view.rows, view.cols));
}

}  // namespace

std::string FeatureMapView::Describe() const {
  return std::to_string(inputs) + " -> " + std::to_string(outputs) +
         (begin == nullptr ? " gather" : " lists of " + std::to_string(entries));
}

Status MapFeaturesOp::Check() const {
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "x", x, x.rows, map.inputs));
  LOWRANK_RETURN_IF_ERROR(CheckOptional(kName, "c", c, x.rows, map.outputs));
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "y", y, x.rows, map.outputs));
  if (map.index == nullptr && map.entries != 0) {
    return Refuse(Code::kDisposed, kName, "map", "allocated", "no memory");
  }
  LOWRANK_RETURN_IF_ERROR(
      Ranges().Out("y", y).In("x", x).In("map", map).In("c", c).CheckApart(kName));
  LOWRANK_RETURN_IF_ERROR(CheckFactor(kName, "alpha", alpha));
  return CheckFactor(kName, "beta", beta);
}
std::string MapFeaturesOp::Describe() const {
  return std::string(kName) + " x " + x.Describe() + " map " + map.Describe() + " c " +
         c.Describe() + " alpha " + std::to_string(alpha) + " beta " + std::to_string(beta);
}

Status BlockMatmulOp::Check() const {
  LOWRANK_RETURN_IF_ERROR(CheckBlocks(kName, blocks));
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "x", x, x.rows, x.cols));
  LOWRANK_RETURN_IF_ERROR(CheckEven(kName, "x", x, blocks));
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "y", y, x.rows, y.cols));
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "w", w, blocks * y.cols, x.cols));
  LOWRANK_RETURN_IF_ERROR(CheckCompatible(kName, "w", w.dtype, "x", x.dtype));
  LOWRANK_RETURN_IF_ERROR(CheckDType(kName, "y", y, x.dtype));
  return Ranges().Out("y", y).In("x", x).In("w", w).CheckApart(kName);
}
std::string BlockMatmulOp::Describe() const {
  return std::string(kName) + " x " + x.Describe() + " w " + w.Describe() + " blocks " +
         std::to_string(blocks);
}

Status BlockMatmulInputGradOp::Check() const {
  LOWRANK_RETURN_IF_ERROR(CheckBlocks(kName, blocks));
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "dy", dy, dy.rows, dy.cols));
  LOWRANK_RETURN_IF_ERROR(CheckEven(kName, "dy", dy, blocks));
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "w", w, blocks * dy.cols, w.cols));
  LOWRANK_RETURN_IF_ERROR(CheckCompatible(kName, "w", w.dtype, "dy", dy.dtype));
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "dx", dx, dy.rows, w.cols));
  LOWRANK_RETURN_IF_ERROR(CheckDType(kName, "dx", dx, dy.dtype));
  return Ranges().Out("dx", dx).In("dy", dy).In("w", w).CheckApart(kName);
}
std::string BlockMatmulInputGradOp::Describe() const {
  return std::string(kName) + " dy " + dy.Describe() + " w " + w.Describe() + " blocks " +
         std::to_string(blocks);
}

Status BlockWeightGradOp::Check() const {
  LOWRANK_RETURN_IF_ERROR(CheckBlocks(kName, blocks));
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "dy", dy, dy.rows, dy.cols));
  LOWRANK_RETURN_IF_ERROR(CheckEven(kName, "dy", dy, blocks));
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "x", x, dy.rows, x.cols));
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "dw", dw, blocks * dy.cols, x.cols));
  LOWRANK_RETURN_IF_ERROR(CheckDType(kName, "dw", dw, DType::kF32));
  return Ranges().Out("dw", dw).In("dy", dy).In("x", x).CheckApart(kName);
}
std::string BlockWeightGradOp::Describe() const {
  return std::string(kName) + " dy " + dy.Describe() + " x " + x.Describe() + " blocks " +
         std::to_string(blocks);
}

Status WeightNormsOp::Check() const {
  LOWRANK_RETURN_IF_ERROR(CheckWeight(kName, w, DType::kF32, "the sums"));
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "norms", norms, 1, w.rows()));
  LOWRANK_RETURN_IF_ERROR(CheckDType(kName, "norms", norms, DType::kF32));
  return Ranges().Out("norms", norms).In("w", w).CheckApart(kName);
}
std::string WeightNormsOp::Describe() const { return std::string(kName) + " w " + w.Describe(); }

Status FactoredNormOp::Check() const {
  const int64_t r = lora_a.rows;
  LOWRANK_RETURN_IF_ERROR(CheckWeight(kName, w, product, "the product"));
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "loraA", lora_a, r, w.cols()));
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "loraB", lora_b, w.rows(), r));
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "weightNorms", squares, 1, w.rows()));
  LOWRANK_RETURN_IF_ERROR(CheckDType(kName, "weightNorms", squares, DType::kF32));
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "norms", norms, 1, w.rows()));
  LOWRANK_RETURN_IF_ERROR(CheckDType(kName, "norms", norms, DType::kF32));
  LOWRANK_RETURN_IF_ERROR(CheckFactor(kName, "scaling", scaling));
  return Ranges()
      .Out("norms", norms)
      .In("loraA", lora_a)
      .In("loraB", lora_b)
      .In("weightNorms", squares)
      .In("w", w)
      .CheckApart(kName);
}
std::string FactoredNormOp::Describe() const {
  return std::string(kName) + " loraA " + lora_a.Describe() + " w " + w.Describe() + " product " +
         DTypeName(product) + " scaling " + std::to_string(scaling);
}

Status QuantizeScalesOp::Check() const {
  LOWRANK_RETURN_IF_ERROR(CheckQuant(kName, "out", out));
  if (!out.double_quant()) {
    return Refuse(Code::kFormat, kName, "out", "double-quantised",
                  "a weight without double quantisation");
  }
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "absmax", absmax, 1, out.blocks()));
  LOWRANK_RETURN_IF_ERROR(CheckDType(kName, "absmax", absmax, DType::kF32));
  return Ranges().Out("out", out).In("absmax", absmax).CheckApart(kName);
}
std::string QuantizeScalesOp::Describe() const {
  return std::string(kName) + " absmax " + absmax.Describe() + " -> " + out.Describe();
}

}  // namespace lowrank
