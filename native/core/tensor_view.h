/// A kernel's view of its operands: a pointer, an element type and a shape. Owns nothing.
#pragma once

#include <cstdint>
#include <string>

#include "native/core/dtype.h"
#include "native/core/quant_format.h"
#include "native/host_device/planes.h"

namespace lowrank {

/// A row-major matrix [rows, cols]. Leading dimensions of a tensor are folded into `rows`.
/// `data == nullptr` with `present == false` is an operand that was not given.
struct TensorView {
  void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  bool present = false;

  int64_t elems() const { return rows * cols; }
  size_t bytes() const { return static_cast<size_t>(elems()) * DTypeBytes(dtype); }
  /// Rows [first, first + count); an absent operand stays absent.
  TensorView Rows(int64_t first, int64_t count) const {
    TensorView part = *this;
    part.rows = count;
    if (data == nullptr) return part;
    part.data = static_cast<char*>(data) + static_cast<size_t>(first * cols) * DTypeBytes(dtype);
    return part;
  }
  /// "[3, 4] bf16"
  std::string Describe() const;
};

/// Blockwise quantised matrix w [N, K] in bitsandbytes' layout: blocks of `blocksize` run over the
/// flattened row-major elements, across row ends; the last block may be short.
///
///   4-bit codes   element 2i in the high nibble of byte i, element 2i + 1 in the low nibble
///   8-bit codes   one byte per element
///   w[i] = codebook[code[i]] · scale(i / blocksize)
///   scale(b)      = absmax[b], or with double quantisation
///                   absmax_codebook[absmax_8bit[b]] · nested_absmax[b / nested_blocksize]
///                   + absmax_offset
///
/// Rowwise (LLM.int8): 8-bit codes of c + 128 for levels c / 127, and the same scale in all blocks
/// of a row. Blocks do not cross rows.
///
/// Planar: what `planes` says in place of all the above but codes and codebook, which has 16 or 256
/// entries. Its format is that of PlanarFormat(bits), and its blocksize 0.
struct QuantView {
  const FormatRow* format = nullptr;
  int64_t rows = 0;  // N
  int64_t cols = 0;  // K
  int64_t blocksize = 0;
  uint8_t* codes = nullptr;
  const float* codebook = nullptr;         // [16] or [256]
  float* absmax = nullptr;                 // [blocks], null with double quantisation
  uint8_t* absmax_8bit = nullptr;          // [blocks]
  const float* absmax_codebook = nullptr;  // [256]
  float* nested_absmax = nullptr;          // [ceil(blocks / nested_blocksize)]
  float* absmax_offset = nullptr;          // [1]
  int64_t nested_blocksize = 256;
  bool rowwise = false;
  Planes planes{};

  bool planar() const { return planes.present(); }
  bool double_quant() const { return absmax_8bit != nullptr; }
  int64_t elems() const { return rows * cols; }
  int64_t blocks() const { return blocksize == 0 ? 0 : (elems() + blocksize - 1) / blocksize; }
  int64_t nested_blocks() const { return (blocks() + nested_blocksize - 1) / nested_blocksize; }
  size_t code_bytes() const {
    if (planar()) return static_cast<size_t>(rows * planes.row_bytes);
    return static_cast<size_t>(format->bits == 4 ? (elems() + 1) / 2 : elems());
  }
  std::string Describe() const;

  /// Rows that start at a block boundary (and one of nested scales) are multiples of this; not for
  /// a weight without columns.
  int64_t RowStep() const;
  /// Rows [first, first + count) as a weight; `first` is a multiple of RowStep().
  QuantView Rows(int64_t first, int64_t count) const;

  uint8_t Code(int64_t index) const {
    if (format->bits == 8) return codes[index];
    const uint8_t pair = codes[index >> 1];
    return (index & 1) == 0 ? static_cast<uint8_t>(pair >> 4) : static_cast<uint8_t>(pair & 15);
  }
  /// The product and the sum are rounded separately (no fma), as the peer's code does.
  float Scale(int64_t block) const {
    if (!double_quant()) return absmax[block];
    volatile float product =
        absmax_codebook[absmax_8bit[block]] * nested_absmax[block / nested_blocksize];
    return product + *absmax_offset;
  }
  float Value(int64_t index) const {
    if (planar()) return PlanarValue(index / cols, index % cols);
    return codebook[Code(index)] * Scale(index / blocksize);
  }
  float PlanarValue(int64_t n, int64_t k) const {
    const uint32_t code = PlaneCode(codes + n * planes.row_bytes, planes.bits, k);
    return PlaneValue(planes, codebook[code], FactorsOf(planes, PlaneEntry(planes, cols, n, k)));
  }
};

/// A fixed 0/1 map of features, from rows of K to rows of J. Element j of the result is the sum of
/// the elements index[begin[j]] to index[begin[j + 1] - 1]; without `begin` it is the single
/// element index[j], or 0 if that is -1. The maker must check that each index is in [0, K),
/// ascending within a list, and that the lists cover `index`, because kernels read at every index.
struct FeatureMapView {
  const int32_t* begin = nullptr;  // [J + 1], or null
  const int32_t* index = nullptr;  // [entries]
  int64_t inputs = 0;              // K
  int64_t outputs = 0;             // J
  int64_t entries = 0;             // J without `begin`

  std::string Describe() const;
};

/// 32-bit indices on a device: ids of tokens, rows. Whoever writes them has checked that each is in
/// [0, limit), or -1 for none: kernels read where they point.
struct IndexView {
  const int32_t* data = nullptr;
  int64_t count = 0;
  int64_t limit = 0;
  bool present = false;

  std::string Describe() const;
};

/// A frozen base weight [N, K]: dense, or quantised.
struct WeightView {
  TensorView dense;  // present when the weight is dense
  QuantView quant;

  bool quantised() const { return !dense.present; }
  int64_t rows() const { return dense.present ? dense.rows : quant.rows; }
  int64_t cols() const { return dense.present ? dense.cols : quant.cols; }
  /// Rows [first, first + count); `first` is a multiple of QuantView::RowStep() where quantised.
  WeightView Rows(int64_t first, int64_t count) const {
    WeightView part;
    if (quantised()) {
      part.quant = quant.Rows(first, count);
    } else {
      part.dense = dense.Rows(first, count);
    }
    return part;
  }
  std::string Describe() const;
};

}  // namespace lowrank
