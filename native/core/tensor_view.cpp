#include "native/core/tensor_view.h"

#include <numeric>

namespace lowrank {

std::string TensorView::Describe() const {
  if (!present) return "none";
  return "[" + std::to_string(rows) + ", " + std::to_string(cols) + "] " + DTypeName(dtype);
}

std::string QuantView::Describe() const {
  if (planar()) {
    return "[" + std::to_string(rows) + ", " + std::to_string(cols) + "] " +
           std::to_string(planes.bits) + "-bit planes";
  }
  return "[" + std::to_string(rows) + ", " + std::to_string(cols) + "] " +
         (format == nullptr ? "unknown" : format->name) + "/" + std::to_string(blocksize) +
         (double_quant() ? " double" : "");
}

int64_t QuantView::RowStep() const {
  if (planar()) return 1;
  const int64_t unit = double_quant() ? blocksize * nested_blocksize : blocksize;
  return unit / std::gcd(unit, cols);
}

QuantView QuantView::Rows(int64_t first, int64_t count) const {
  QuantView part = *this;
  if (planar()) {
    part.rows = count;
    part.codes += first * planes.row_bytes;
    part.planes.first_row += first;
    return part;
  }
  const int64_t elem = first * cols;
  const int64_t block = elem / blocksize;
  part.rows = count;
  part.codes += format->bits == 4 ? elem / 2 : elem;
  if (!double_quant()) {
    part.absmax += block;
  } else {
    part.absmax_8bit += block;
    part.nested_absmax += block / nested_blocksize;
  }
  return part;
}

std::string WeightView::Describe() const {
  return dense.present ? dense.Describe() : quant.Describe();
}

std::string IndexView::Describe() const {
  if (!present) return "none";
  return "[" + std::to_string(count) + "] of " + std::to_string(limit);
}

}  // namespace lowrank
