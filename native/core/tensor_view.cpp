#include "native/core/tensor_view.h"

namespace lowrank {

std::string TensorView::Describe() const {
  if (!present) return "none";
  return "[" + std::to_string(rows) + ", " + std::to_string(cols) + "] " + DTypeName(dtype);
}

std::string QuantView::Describe() const {
  return "[" + std::to_string(rows) + ", " + std::to_string(cols) + "] " +
         (format == nullptr ? "unknown" : format->name) + "/" + std::to_string(blocksize) +
         (double_quant() ? " double" : "");
}

std::string WeightView::Describe() const {
  return dense.present ? dense.Describe() : quant.Describe();
}

}  // namespace lowrank
