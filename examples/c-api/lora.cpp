// lora.c in C++, with handles that release themselves. CMakeLists.txt beside it builds it:
//
//   cmake -S . -B build && cmake --build build && build/lora
#include <lowrank.h>

#include <cmath>
#include <cstdio>
#include <memory>
#include <stdexcept>
#include <vector>

namespace {

/// A float32 matrix [rows, cols] that owns its elements.
struct Matrix {
  Matrix(int64_t rows, int64_t cols) : shape{rows, cols}, values(static_cast<size_t>(rows * cols)) {}
  DLTensor* tensor() {
    view.data = values.data();
    view.device = {kDLCPU, 0};
    view.ndim = 2;
    view.dtype = {kDLFloat, 32, 1};
    view.shape = shape;
    return &view;
  }
  float& operator[](size_t i) { return values[i]; }
  size_t size() const { return values.size(); }

  int64_t shape[2];
  std::vector<float> values;
  DLTensor view{};
};

void Check(int32_t code) {
  if (code != LOWRANK_OK) throw std::runtime_error(lowrank_last_error());
}

struct Release {
  void operator()(lowrank_weight* weight) const { lowrank_weight_release(weight); }
};
using Weight = std::unique_ptr<lowrank_weight, Release>;

/// A struct of the interface: zeros, and its size.
template <typename Args>
Args New() {
  Args args{};
  args.size = sizeof(args);
  return args;
}

Weight Quantize(Matrix* w, const char* format) {
  auto args = New<lowrank_quantize_args>();
  args.w = w->tensor();
  args.format = format;
  lowrank_weight* weight = nullptr;
  Check(lowrank_weight_quantize(&args, &weight));
  return Weight(weight);
}

void Train() {
  constexpr int64_t M = 8, N = 64, K = 128, R = 4;
  Matrix x(M, K), w(N, K), a(R, K), b(N, R), t(M, N), h(M, R), y(M, N), dy(M, N), d_a(R, K), d_b(N, R);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(std::sin(static_cast<double>(i)));
  for (size_t i = 0; i < w.size(); ++i) w[i] = static_cast<float>(0.1 * std::cos(3.0 * static_cast<double>(i)));
  for (size_t i = 0; i < a.size(); ++i) a[i] = static_cast<float>(0.1 * std::sin(7.0 * static_cast<double>(i)));
  for (size_t i = 0; i < t.size(); ++i) t[i] = static_cast<float>(std::cos(static_cast<double>(i)));
  const Weight weight = Quantize(&w, "nf4");
  auto forward = New<lowrank_lora_forward_args>();
  forward.x = x.tensor();
  forward.w = weight.get();
  forward.lora_a = a.tensor();
  forward.lora_b = b.tensor();
  forward.scaling = 2;
  forward.h = h.tensor();
  forward.y = y.tensor();
  auto backward = New<lowrank_lora_backward_args>();
  backward.dy = dy.tensor();
  backward.x = x.tensor();
  backward.lora_a = a.tensor();
  backward.lora_b = b.tensor();
  backward.h = h.tensor();
  backward.scaling = 2;
  backward.d_lora_a = d_a.tensor();
  backward.d_lora_b = d_b.tensor();
  for (int step = 1; step <= 5; ++step) {
    double loss = 0;
    Check(lowrank_lora_forward(&forward));
    for (size_t i = 0; i < y.size(); ++i) {
      dy[i] = (y[i] - t[i]) / (M * N);
      loss += 0.5 * (y[i] - t[i]) * (y[i] - t[i]) / (M * N);
    }
    Check(lowrank_lora_backward(&backward));
    for (size_t i = 0; i < a.size(); ++i) a[i] -= 4 * d_a[i];
    for (size_t i = 0; i < b.size(); ++i) b[i] -= 4 * d_b[i];
    std::printf("step %d loss %.4f\n", step, loss);
  }
}

}  // namespace

int main() {
  try {
    Train();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
