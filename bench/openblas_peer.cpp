// The LoRA layer on OpenBLAS: dense f32, one product after another. Compiled and run by
// `lowrank bench`; links -lopenblas.
#include <cblas.h>

#include "peer.h"

namespace {

using Floats = std::vector<float>;

/// c = alpha * op(a) * op(b) + beta * c, with c [rows, columns].
void Product(bool turn_a, bool turn_b, int64_t rows, int64_t columns, int64_t inner, float alpha,
             const float* a, const float* b, float beta, float* c) {
  cblas_sgemm(CblasRowMajor, turn_a ? CblasTrans : CblasNoTrans, turn_b ? CblasTrans : CblasNoTrans,
              static_cast<int>(rows), static_cast<int>(columns), static_cast<int>(inner), alpha, a,
              static_cast<int>(turn_a ? rows : inner), b,
              static_cast<int>(turn_b ? inner : columns), beta, c, static_cast<int>(columns));
}

struct Layer {
  explicit Layer(const peer::Job& job)
      : M(job.M),
        K(job.K),
        N(job.N),
        r(job.r),
        x(Elements(peer::kX, M * K)),
        dy(Elements(peer::kDy, M * N)),
        a(Elements(peer::kLoraA, r * K)),
        b(Elements(peer::kLoraB, N * r)),
        h(Sized(M * r)),
        dh(Sized(M * r)),
        y(Sized(M * N)),
        dx(Sized(M * K)),
        da(Sized(r * K)),
        db(Sized(N * r)) {
    const Floats w = Elements(peer::kW, N * K);
    weights.assign(static_cast<size_t>(peer::Copies(job, 4.0 * N * K)), w);
  }
  static Floats Sized(int64_t count) { return Floats(static_cast<size_t>(count)); }
  const float* Next() { return weights[turn++ % weights.size()].data(); }

  void Base(const float* w) { Product(false, true, M, N, K, 1, x.data(), w, 0, y.data()); }
  void Forward(const float* w) {
    Base(w);
    Product(false, true, M, r, K, 1, x.data(), a.data(), 0, h.data());
    Product(false, true, M, N, r, peer::kScaling, h.data(), b.data(), 1, y.data());
  }
  /// dx, and the gradients of both factors; `h` is that of a forward pass.
  void Backward(const float* w) {
    Product(false, false, M, r, N, peer::kScaling, dy.data(), b.data(), 0, dh.data());
    Product(false, false, M, K, N, 1, dy.data(), w, 0, dx.data());
    Product(false, false, M, K, r, 1, dh.data(), a.data(), 1, dx.data());
    Product(true, false, r, K, M, 1, dh.data(), x.data(), 0, da.data());
    Product(true, false, N, r, M, peer::kScaling, dy.data(), h.data(), 0, db.data());
  }

  int64_t M, K, N, r;
  Floats x, dy, a, b, h, dh, y, dx, da, db;
  std::vector<Floats> weights;
  size_t turn = 0;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != peer::kArguments) return 2;
  const peer::Job job = peer::ReadJob(argv);
  openblas_set_num_threads(job.threads);
  Layer layer(job);
  const bool backward = job.op == "lora" || job.op == "loraBackward";
  layer.Forward(layer.Next());
  const auto call = [&] {
    const float* w = layer.Next();
    if (job.op == "matmul") return layer.Base(w);
    if (job.op != "loraBackward") layer.Forward(w);
    if (backward) layer.Backward(w);
  };
  call();
  const int64_t width = backward ? job.K : job.N;
  const Floats& result = backward ? layer.dx : layer.y;
  const Floats last(result.end() - width, result.end());
  // "OpenBLAS 0.3.29 ...": the second word.
  const std::string config = openblas_get_config();
  const size_t from = config.find(' ') + 1;
  const std::string version = config.substr(from, config.find(' ', from) - from);
  peer::Serve({version + " " + openblas_get_corename(), "dense f32", 4.0 * job.N * job.K,
               static_cast<int64_t>(layer.weights.size()), last},
              call);
}
