// The product x * w^T, and the LoRA layer's forward pass, on oneDNN: dense weights, packed once.
// Compiled and run by `lowrank bench`; links -ldnnl.
#include <array>
#include <dnnl.hpp>

#include "peer.h"

namespace {

using dnnl::memory;
using Tag = memory::format_tag;

/// Memory of a type, filled from f32.
struct Engine {
  dnnl::engine cpu{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream{cpu};

  memory Filled(const std::vector<float>& values, memory::desc described) {
    memory plain({described.get_dims(), memory::data_type::f32, described.get_strides()}, cpu,
                 const_cast<float*>(values.data()));
    memory result(described, cpu);
    dnnl::reorder(plain, result).execute(stream, plain, result);
    stream.wait();
    return result;
  }
  memory Reordered(memory& from, const memory::desc& described) {
    memory result(described, cpu);
    dnnl::reorder(from, result).execute(stream, from, result);
    stream.wait();
    return result;
  }
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != peer::kArguments) return 2;
  const peer::Job job = peer::ReadJob(argv);
  const auto type = job.dtype == "bf16" ? memory::data_type::bf16 : memory::data_type::f32;
  const auto [M, K, N, r] = std::array{job.M, job.K, job.N, job.r};
  try {
    Engine engine;
    // Transposed in place: w is [N, K], the product takes [K, N].
    const auto turned = [&](int64_t rows, int64_t columns) {
      return memory::desc({columns, rows}, type, Tag::ba);
    };
    const auto plain = [&](int64_t rows, int64_t columns) {
      return memory::desc({rows, columns}, type, Tag::ab);
    };
    const auto product = [&](int64_t rows, int64_t inner, int64_t columns, bool add) {
      dnnl::primitive_attr attr;
      if (add) {
        dnnl::post_ops sum;
        sum.append_sum(1.0f);
        attr.set_post_ops(sum);
      }
      return dnnl::matmul::primitive_desc(engine.cpu, plain(rows, inner),
                                          memory::desc({inner, columns}, type, Tag::any),
                                          plain(rows, columns), attr);
    };
    const double weight_bytes = static_cast<double>(N * K) * (job.dtype == "bf16" ? 2 : 4);
    const auto base = product(M, K, N, false);
    const auto down = product(M, K, r, false);
    const auto up = product(M, r, N, true);

    memory x = engine.Filled(peer::Elements(peer::kX, M * K), plain(M, K));
    memory w = engine.Filled(peer::Elements(peer::kW, N * K), turned(N, K));
    memory a = engine.Filled(peer::Elements(peer::kLoraA, r * K), turned(r, K));
    std::vector<float> scaled = peer::Elements(peer::kLoraB, N * r);
    for (float& value : scaled) value *= peer::kScaling;
    memory b = engine.Filled(scaled, turned(N, r));
    std::vector<memory> weights;
    for (int64_t i = 0; i < peer::Copies(job, weight_bytes); i++) {
      weights.push_back(engine.Reordered(w, base.weights_desc()));
    }
    memory packed_a = engine.Reordered(a, down.weights_desc());
    memory packed_b = engine.Reordered(b, up.weights_desc());
    memory y(plain(M, N), engine.cpu), h(plain(M, r), engine.cpu);
    const dnnl::matmul run_base(base), run_down(down), run_up(up);
    const auto run = [&](const dnnl::matmul& what, memory& from, memory& with, memory& to) {
      what.execute(engine.stream,
                   {{DNNL_ARG_SRC, from}, {DNNL_ARG_WEIGHTS, with}, {DNNL_ARG_DST, to}});
    };
    size_t turn = 0;
    const auto call = [&] {
      run(run_base, x, weights[turn++ % weights.size()], y);
      if (job.op != "matmul") {
        run(run_down, x, packed_a, h);
        run(run_up, h, packed_b, y);
      }
      engine.stream.wait();
    };
    call();
    memory result = engine.Reordered(y, memory::desc({M, N}, memory::data_type::f32, Tag::ab));
    const float* values = static_cast<const float*>(result.get_data_handle()) + (M - 1) * N;
    const dnnl_version_t* v = dnnl_version();
    const std::string version =
        std::to_string(v->major) + "." + std::to_string(v->minor) + "." + std::to_string(v->patch);
    peer::Serve({version,
                 "dense " + job.dtype + ", packed once",
                 weight_bytes,
                 static_cast<int64_t>(weights.size()),
                 {values, values + N}},
                call);
  } catch (const dnnl::error& error) {
    peer::Fail(error.what());
  }
}
