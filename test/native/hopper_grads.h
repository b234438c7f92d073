/// The factors' gradients that a product's spare warps compute, held to the formula.
#pragma once

#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "native/cuda/plans/products/plan_gemm_wgmma.h"
#include "test/native/hopper_matrix.h"

namespace lowrank::test {

/// d_lora_a of x [M, N] and dh, d_lora_b of dy [M, K] and h: sums over m, before scaling.
class GradProblem {
 public:
  /// What `dh` holds is the check's to know.
  GradProblem(const cuda::GemmMmaOperands& product, const Matrix& dy, const float* dh,
              std::mt19937_64* rng)
      : M_(product.x.rows), r_(product.lora_factor.rows), dy_(&dy) {
    x_ = std::make_unique<Matrix>(M_, product.w.cols(), product.x.dtype, rng, 1);
    h_ = std::make_unique<Matrix>(M_, r_, DType::kF32, rng, 1);
    cuda::WgmmaGrad of_a;
    of_a.operands.x = x_->view;
    of_a.operands.factor = dh;
    of_a.operands.r = r_;
    of_a.operands.rank_major = true;
    of_a.operands.dropout = product.dropout;
    cuda::WgmmaGrad of_b;
    of_b.operands.x = dy.view;
    of_b.operands.factor = h_->view.data;
    of_b.operands.r = r_;
    grads_ = {of_a, of_b};
  }

  std::vector<cuda::WgmmaGrad>* grads() { return &grads_; }

  /// Infinities and NaN in x and h.
  void Poke() {
    x_->Set(3, 1, std::numeric_limits<float>::infinity());
    x_->Set(9, 2, -std::numeric_limits<float>::infinity());
    h_->Set(17, 0, std::numeric_limits<float>::infinity());
    h_->Set(40, 1, std::numeric_limits<float>::quiet_NaN());
  }

  /// The planes added in their order; their bits.
  std::vector<unsigned char> Read() {
    std::vector<unsigned char> bytes;
    sums_.clear();
    for (const cuda::WgmmaGrad& grad : grads_) {
      const size_t count = static_cast<size_t>(grad.operands.x.cols * r_);
      std::vector<float> sum(count, 0.0f);
      for (int64_t split = 0; split < grad.planes.splits; ++split) {
        const float* plane = grad.planes.planes + split * grad.planes.plane_elems;
        for (size_t i = 0; i < count; ++i) sum[i] += plane[i];
      }
      const auto* raw = reinterpret_cast<const unsigned char*>(sum.data());
      bytes.insert(bytes.end(), raw, raw + count * 4);
      sums_.push_back(std::move(sum));
    }
    return bytes;
  }

  /// Elements out of bounds. `kept(i)`: does the gate keep element i of x?
  template <typename Kept>
  size_t Check(const std::vector<double>& dh, const Kept& kept) const {
    return CheckOne(sums_[0], *x_, dh, true, kept) +
           CheckOne(sums_[1], *dy_, h_->values, false, [](int64_t) { return true; });
  }

 private:
  template <typename Kept>
  size_t CheckOne(const std::vector<float>& sums, const Matrix& x, const std::vector<double>& factor,
                  bool rank_major, const Kept& kept) const {
    const int64_t cols = x.view.cols;
    size_t bad = 0;
    for (int64_t c = 0; c < cols; ++c) {
      for (int64_t j = 0; j < r_; ++j) {
        double sum = 0;
        double magnitude = 0;
        for (int64_t m = 0; m < M_; ++m) {
          const double value = kept(m * cols + c) ? x.values[static_cast<size_t>(m * cols + c)] : 0;
          const double term = value * factor[static_cast<size_t>(m * r_ + j)];
          sum += term;
          magnitude += std::fabs(term);
        }
        const auto computed = static_cast<double>(
            sums[static_cast<size_t>(rank_major ? j * cols + c : c * r_ + j)]);
        if (!std::isfinite(sum)) {
          bad += std::isnan(sum) ? !std::isnan(computed) : computed != sum;
        } else if (!(std::fabs(computed - sum) <= 16 * 0x1p-24 * magnitude + 0x1p-126)) {
          ++bad;
        }
      }
    }
    return bad;
  }

  int64_t M_;
  int64_t r_;
  const Matrix* dy_;
  std::unique_ptr<Matrix> x_;
  std::unique_ptr<Matrix> h_;
  std::vector<cuda::WgmmaGrad> grads_;
  std::vector<std::vector<float>> sums_;
};

}  // namespace lowrank::test
