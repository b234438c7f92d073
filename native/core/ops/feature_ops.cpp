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

Status CheckIndex(const char* op, int64_t at, int32_t value, int32_t least, int64_t inputs) {
  if (value >= least && value < inputs) return Status();
  return Refuse(Code::kValue, op, "index[" + std::to_string(at) + "]",
                "from " + std::to_string(least) + " to " + std::to_string(inputs - 1),
                std::to_string(value));
}

}  // namespace

Status CheckFeatureMap(const char* op, const FeatureMapView& map) {
  const int32_t* index = map.index;
  if (map.begin == nullptr) {
    // A gather: one input each, or none.
    for (int64_t i = 0; i < map.entries; ++i) {
      LOWRANK_RETURN_IF_ERROR(CheckIndex(op, i, index[i], -1, map.inputs));
    }
    return Status();
  }
  const int32_t* begin = map.begin;
  if (begin[0] != 0 || begin[map.outputs] != map.entries) {
    return Refuse(Code::kValue, op, "begin", "from 0 to " + std::to_string(map.entries),
                  std::to_string(begin[0]) + " to " + std::to_string(begin[map.outputs]));
  }
  for (int64_t j = 0; j < map.outputs; ++j) {
    if (begin[j] > begin[j + 1] || begin[j + 1] > map.entries) {
      return Refuse(Code::kValue, op, "begin", "in ascending order",
                    std::to_string(begin[j + 1]) + " after " + std::to_string(begin[j]));
    }
    for (int64_t p = begin[j]; p < begin[j + 1]; ++p) {
      LOWRANK_RETURN_IF_ERROR(CheckIndex(op, p, index[p], 0, map.inputs));
      if (p > begin[j] && index[p] <= index[p - 1]) {
        return Refuse(Code::kValue, op, "index", "ascending within a list",
                      std::to_string(index[p]) + " after " + std::to_string(index[p - 1]));
      }
    }
  }
  return Status();
}

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
