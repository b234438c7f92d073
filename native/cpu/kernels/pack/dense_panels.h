/// B panels of dx = dy · w over a dense w, copied in parallel with the tiles of the previous block.
///
///   w        [N, K] row-major in f32, bf16 or f16: 64 to 128 bytes of a row per piece, for pairs
///            in bf16 from two rows
///   panels   [panel][unit][column] of a block of kKC rows of w
///
/// Copied in one pass, a block waits for memory, at 13 GB/s of 43: 256 x 256 values of f32 take 20
/// us, while 64 rows of dy take 30. Prefetched during the tiles before, lines arrived in bursts of
/// a hundred. A piece every few steps spreads the load on memory.
///
/// Numerics   none: values as stored, widened if products are in f32
/// Budget     a piece: 2 loads and 2 stores of vectors (bf16: 4, 8 to form pairs, 2), and 12 other
///            instructions. With 14 rows of dy or fewer there is one per step of 28 products; with
///            64 one per five steps
#pragma once

#include "native/cpu/kernels/tile/gemm.h"

namespace lowrank::cpu::LOWRANK_ISA {

// Rows of dy up to which it is worth the space of a second block in L2.
template <typename Policy>
constexpr int64_t kCopyRows = Policy::kPairs ? kChunkRows : kBesideRows;

/// A block, piece by piece: for each row, or pair, one panel after another.
template <typename Policy>
class CopiedPanels {
 public:
  CopiedPanels() = default;
  /// Rows [k0, k0 + kc) of w, columns [n0, n0 + cols), whole panels.
  CopiedPanels(const TensorView& w, int64_t k0, int64_t kc, int64_t n0, int64_t cols, Unit* out)
      : from_(static_cast<const char*>(w.data) + (k0 * w.cols + n0) * Bytes(w)),
        dtype_(w.dtype),
        pitch_(w.cols * Bytes(w)),
        piece_bytes_(kNR * Bytes(w)),
        row_pieces_(cols / kNR),
        pieces_(row_pieces_),
        left_(kc / kRows * row_pieces_),
        out_(out),
        stride_(PanelStride(Policy::Units(kc))) {}
  int64_t pieces() const { return left_; }

  /// Copies a piece, if one is left.
  LOWRANK_MEMBER_INLINE void Step() {
    if (left_ != 0) OutOfRegisters(this)->Copy();
  }
  void Finish() {
    while (left_ != 0) Step();
  }

 private:
  static constexpr int64_t kRows = Policy::kPairs ? 2 : 1;
  static int64_t Bytes(const TensorView& w) { return static_cast<int64_t>(DTypeBytes(w.dtype)); }

  LOWRANK_MEMBER_INLINE void Copy() {
    const char* from = from_;
    const DType dtype = Policy::kPairs ? DType::kBF16 : dtype_;
    for (int64_t row = 0; row < kRows; ++row) {
      const char* ahead = from + (kPrefetchRows + row) * pitch_;
      __builtin_prefetch(ahead, 0, 2);
      if (dtype == DType::kF32) __builtin_prefetch(ahead + piece_bytes_ / 2, 0, 2);
    }
#pragma GCC unroll 2
    for (int64_t v = 0; v < kNR; v += kVL) {
      const VecF even = LoadWide(from, dtype, v);
      if constexpr (Policy::kPairs) {
        StoreU(out_ + v, PairBF16(even, LoadWide(from + pitch_, dtype, v)));
      } else {
        Store(out_ + v, even);
      }
    }
    --left_;
    from_ += piece_bytes_;
    out_ += stride_;
    if (--pieces_ != 0) return;
    pieces_ = row_pieces_;
    from_ += kRows * pitch_ - row_pieces_ * piece_bytes_;
    out_ += kNR - row_pieces_ * stride_;
  }

  const char* from_ = nullptr;
  DType dtype_ = DType::kF32;
  int64_t pitch_ = 0;        // from row to row
  int64_t piece_bytes_ = 0;  // of a row
  int64_t row_pieces_ = 0;
  int64_t pieces_ = 0;  // left of this row
  int64_t left_ = 0;    // of all
  Unit* out_ = nullptr;
  int64_t stride_ = 0;  // from one panel to the next
};

/// PackB of it.
template <typename Policy>
struct CopiedB : DirectB<Policy> {
  using Decoder = CopiedPanels<Policy>;
  using DirectB<Policy>::b;

  bool DecodesBeside(int64_t rows, int64_t cols) const {
    return rows <= kCopyRows<Policy> && cols % kNR == 0;
  }
  Decoder Decoding(int64_t k0, int64_t kc, int64_t n0, int64_t n1, Unit* out) const {
    return Decoder(*b.dense, k0, kc, n0, n1 - n0, out);
  }
};

}  // namespace lowrank::cpu::LOWRANK_ISA
