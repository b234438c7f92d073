/// Matrices of doubles that the native checks hold results against: decoded once, multiplied in
/// loops whose inner one runs along rows.
#pragma once

#include "test/native/kernel_operands.h"

namespace lowrank::cpu {

/// Sums of products in double, and of each the sum of their magnitudes, which its error bound is
/// made of.
struct Exact {
  int64_t rows = 0;
  int64_t cols = 0;
  std::vector<double> value;
  std::vector<double> size;

  Exact(int64_t row_count, int64_t col_count)
      : rows(row_count),
        cols(col_count),
        value(static_cast<size_t>(rows * cols)),
        size(static_cast<size_t>(rows * cols)) {}

  /// element(row, col) of each.
  template <typename Element>
  static Exact Of(int64_t rows, int64_t cols, const Element& element) {
    Exact out(rows, cols);
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t col = 0; col < cols; ++col) {
        const size_t i = out.Index(row, col);
        out.value[i] = element(row, col);
        out.size[i] = std::fabs(out.value[i]);
      }
    }
    return out;
  }
  static Exact Of(const Dense& dense) {
    return Of(dense.view.rows, dense.view.cols,
              [&](int64_t row, int64_t col) { return dense.At(row, col); });
  }
  static Exact Of(const Weight& w) {
    return Of(w.view.rows(), w.view.cols(),
              [&](int64_t row, int64_t col) { return w.At(row, col); });
  }

  size_t Index(int64_t row, int64_t col) const { return static_cast<size_t>(row * cols + col); }

  Exact Transposed() const {
    Exact out(cols, rows);
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t col = 0; col < cols; ++col) {
        out.value[out.Index(col, row)] = value[Index(row, col)];
        out.size[out.Index(col, row)] = size[Index(row, col)];
      }
    }
    return out;
  }

  /// + factor · a · b
  Exact& Add(const Exact& a, const Exact& b, double factor = 1) {
    if (a.rows != rows || b.rows != a.cols || b.cols != cols) std::abort();
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t i = 0; i < a.cols; ++i) {
        const double scale = factor * a.value[a.Index(row, i)];
        const double magnitude = std::fabs(factor) * a.size[a.Index(row, i)];
        const double* b_value = b.value.data() + b.Index(i, 0);
        const double* b_size = b.size.data() + b.Index(i, 0);
        double* out_value = value.data() + Index(row, 0);
        double* out_size = size.data() + Index(row, 0);
        for (int64_t col = 0; col < cols; ++col) {
          out_value[col] += scale * b_value[col];
          out_size[col] += magnitude * b_size[col];
        }
      }
    }
    return *this;
  }
  /// + factor · a; one row is added to each.
  Exact& Add(const Exact& a, double factor = 1) {
    if ((a.rows != 1 && a.rows != rows) || a.cols != cols) std::abort();
    for (int64_t row = 0; row < rows; ++row) {
      const size_t from = a.Index(a.rows == 1 ? 0 : row, 0);
      for (int64_t col = 0; col < cols; ++col) {
        value[Index(row, col)] += factor * a.value[from + static_cast<size_t>(col)];
        size[Index(row, col)] += std::fabs(factor) * a.size[from + static_cast<size_t>(col)];
      }
    }
    return *this;
  }
  /// Each element times that of `gate`.
  Exact& Gate(const Exact& gate) {
    if (gate.rows != rows || gate.cols != cols) std::abort();
    for (size_t i = 0; i < value.size(); ++i) {
      value[i] *= gate.value[i];
      size[i] *= gate.size[i];
    }
    return *this;
  }
};

inline Exact Gates(const DropoutSpec& dropout, int64_t M, int64_t K) {
  return Exact::Of(M, K, [&](int64_t m, int64_t k) { return GateAt(dropout, m, k, K); });
}

/// Each element of `actual` within the bound of Expect().
inline void ExpectAll(const std::string& what, const Dense& actual, const Exact& exact) {
  Report(actual.view.rows == exact.rows && actual.view.cols == exact.cols, what + " shape");
  for (int64_t i = 0; i < actual.view.elems(); ++i) {
    const size_t at = static_cast<size_t>(i);
    Expect(what, actual.At(i), exact.value[at], exact.size[at], actual.view.dtype);
  }
}

}  // namespace lowrank::cpu
