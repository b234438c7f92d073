/// The most dynamic shared memory that a plan gives each kernel, over sizes of real models, on one
/// card for each architecture of a package: a line of JSON for each of both, for
/// `check:cuda --trace`. A kernel without a line is not launched there. With cases of
/// bench/gpu/budget.mjs as arguments: the launches of each on an H100, a line a case. Arithmetic
/// only, no device.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "cuda/emulator/driver/device_model.h"
#include "native/cuda/plans/plan.h"
#include "native/host_device/params/gemm_wgmma.h"
#include "test/native/cuda_plan_experts.h"
#include "test/native/cuda_plan_model.h"

namespace {

using namespace lowrank;
using cuda::DeviceLimits;
using cuda::Plan;
using plan_table::Architecture;
using plan_table::kArchitectures;
using plan_table::Matrix;
using plan_table::Some;
using plan_table::Weight;

constexpr DType kDTypes[] = {DType::kF32, DType::kBF16, DType::kF16};

DeviceLimits LimitsOf(int sm) { return cuda::LimitsOf(emu::driver::ModelOf(sm)); }

/// The plans of one card.
class Card {
 public:
  explicit Card(const Architecture& architecture)
      : name_(architecture.name), limits_(LimitsOf(architecture.sm)) {}

  template <typename Op>
  void Add(const Op& op) {
    cuda::Workspace workspace(Some(size_t{1} << 34));
    Plan plan;
    Status status = op.Check();
    if (status.ok()) status = MakePlan(op, limits_, &workspace, &plan);
    if (!status.ok()) {
      if (!failed_.insert(Op::kName).second) return;
      std::fprintf(stderr, "%s: %s: %s\n", name_, op.Describe().c_str(), status.message().c_str());
      return;
    }
    planned_.insert(Op::kName);
    for (const cuda::LaunchStep& step : plan.steps) {
      uint32_t& most = most_[step.kernel];
      most = std::max(most, step.shared_bytes);
    }
  }

  /// Prints the table; false where an op has no plan, or one was refused.
  bool Print() const {
    for (const auto& [kernel, bytes] : most_) {
      std::printf("{\"arch\": \"%s\", \"kernel\": \"%s\", \"shared_bytes\": %u}\n", name_,
                  kernel.c_str(), bytes);
    }
    bool complete = failed_.empty();
    for (const char* op : {
#define LOWRANK_NAME(Name, member) Name##Op::kName,
             LOWRANK_FOR_EACH_OP(LOWRANK_NAME)
#undef LOWRANK_NAME
         }) {
      if (planned_.count(op) != 0) continue;
      std::fprintf(stderr, "%s: no plan of %s\n", name_, op);
      complete = false;
    }
    return complete;
  }

 private:
  const char* name_;
  DeviceLimits limits_;
  std::map<std::string, uint32_t> most_;
  std::set<std::string> planned_;
  std::set<std::string> failed_;
};

/// A layer and its halves, forward and backward.
void AddLora(DType dtype, const WeightView& w, int64_t M, int64_t r, Card* card) {
  const int64_t N = w.rows();
  const int64_t K = w.cols();
  LoraForwardOp forward;
  forward.x = Matrix(dtype, M, K);
  forward.w = w;
  forward.lora_a = Matrix(DType::kF32, r, K);
  forward.lora_b = Matrix(DType::kF32, N, r);
  forward.h = Matrix(DType::kF32, M, r);
  forward.y = Matrix(dtype, M, N);
  forward.scaling = 2;
  card->Add(forward);
  LoraBackwardOp backward;
  backward.dy = Matrix(dtype, M, N);
  backward.x = forward.x;
  backward.w = w;
  backward.lora_a = forward.lora_a;
  backward.lora_b = forward.lora_b;
  backward.h = forward.h;
  backward.dx = Matrix(dtype, M, K);
  backward.d_lora_a = Matrix(DType::kF32, r, K);
  backward.d_lora_b = Matrix(DType::kF32, N, r);
  backward.scaling = 2;
  card->Add(backward);

  LoraShrinkOp shrink;
  shrink.x = forward.x;
  shrink.lora_a = forward.lora_a;
  shrink.h = forward.h;
  card->Add(shrink);
  LoraExpandOp expand;
  expand.x = forward.x;
  expand.w = w;
  expand.h = forward.h;
  expand.lora_b = forward.lora_b;
  expand.y = forward.y;
  card->Add(expand);
  LoraExpandBackwardOp expand_backward;
  expand_backward.dy = backward.dy;
  expand_backward.h = forward.h;
  expand_backward.lora_b = forward.lora_b;
  expand_backward.dh = Matrix(DType::kF32, M, r);
  expand_backward.d_lora_b = backward.d_lora_b;
  card->Add(expand_backward);
  LoraShrinkBackwardOp shrink_backward;
  shrink_backward.dy = backward.dy;
  shrink_backward.w = w;
  shrink_backward.dh = expand_backward.dh;
  shrink_backward.x = forward.x;
  shrink_backward.lora_a = forward.lora_a;
  shrink_backward.dx = backward.dx;
  shrink_backward.d_lora_a = backward.d_lora_a;
  card->Add(shrink_backward);

  LoraForwardOp parts[2] = {forward, forward};
  parts[1].h = Matrix(DType::kF32, M, r);
  parts[1].y = Matrix(dtype, M, N);
  card->Add(LoraForwardManyOp{parts, 2});
  LoraForwardSwigluOp swiglu = {parts[0], parts[1], Matrix(dtype, M, N)};
  card->Add(swiglu);
  swiglu.gate.y = swiglu.up.y = TensorView();
  card->Add(swiglu);
}

/// A batch whose rows go to two adapters in turn.
void AddGrouped(DType dtype, const WeightView& w, int64_t M, int64_t r, Card* card) {
  const int64_t N = w.rows();
  const int64_t K = w.cols();
  AdapterRows adapters[2];
  std::vector<int32_t> rows;
  for (int first = 0; first < 2; ++first) {
    AdapterRows& adapter = adapters[first];
    adapter.lora_a = Matrix(DType::kF32, r, K);
    adapter.lora_b = Matrix(DType::kF32, N, r);
    adapter.d_lora_a = Matrix(DType::kF32, r, K);
    adapter.d_lora_b = Matrix(DType::kF32, N, r);
    adapter.scaling = 2;
    adapter.first = static_cast<int64_t>(rows.size());
    adapter.h_begin = adapter.first * r;
    for (int32_t m = first; m < M; m += 2) rows.push_back(m);
    adapter.count = static_cast<int64_t>(rows.size()) - adapter.first;
  }
  GroupedForwardOp forward;
  forward.x = Matrix(dtype, M, K);
  forward.w = w;
  forward.table = {adapters, 2, rows.data(), rows.data(), M, 1, M * r};
  forward.row_scale = Matrix(DType::kF32, 1, M);
  forward.h = Matrix(DType::kF32, 1, M * r);
  forward.y = Matrix(dtype, M, N);
  card->Add(forward);
  GroupedBackwardOp backward;
  backward.dy = Matrix(dtype, M, N);
  backward.x = forward.x;
  backward.w = w;
  backward.table = forward.table;
  backward.row_scale = forward.row_scale;
  backward.h = forward.h;
  backward.dx = Matrix(dtype, M, K);
  backward.d_row_scale = Matrix(DType::kF32, 1, M);
  backward.in_features = K;
  card->Add(backward);
  // Without weights of the rows, many of an adapter have products of their own.
  forward.row_scale = TensorView();
  card->Add(forward);
  backward.row_scale = TensorView();
  backward.d_row_scale = TensorView();
  card->Add(backward);
}

/// All that is done with a batch of M rows and a weight.
void AddProducts(DType dtype, const WeightView& w, int64_t M, Card* card) {
  const int64_t N = w.rows();
  const int64_t K = w.cols();
  MatmulOp matmul;
  matmul.x = Matrix(dtype, M, K);
  matmul.w = w;
  matmul.y = Matrix(dtype, M, N);
  card->Add(matmul);
  MatmulInputGradOp grad;
  grad.dy = Matrix(dtype, M, N);
  grad.w = w;
  grad.dx = Matrix(dtype, M, K);
  card->Add(grad);
  card->Add(WeightGradOp{grad.dy, matmul.x, Matrix(dtype, N, K)});
  for (const int64_t r : {8, 16, 64}) {
    AddLora(dtype, w, M, r, card);
    AddGrouped(dtype, w, M, r, card);
  }
}

/// Products of int8 codes, of a layer and of a product alone; and those of the weight.
void AddInt8(DType dtype, int64_t M, int64_t N, int64_t K, Card* card) {
  LoraForwardOp op;
  op.x = Matrix(dtype, M, K);
  op.w = Weight("int8", dtype, false, N, K);
  op.w.quant.rowwise = true;
  op.lora_a = Matrix(DType::kF32, 16, K);
  op.lora_b = Matrix(DType::kF32, N, 16);
  op.h = Matrix(DType::kF32, M, 16);
  op.y = Matrix(dtype, M, N);
  op.scaling = 2;
  op.compute = Compute::kInt8;
  card->Add(op);
  card->Add(BaseOf(op));
  card->Add(QuantizeOp{Matrix(dtype, N, K), op.w.quant});
}

/// A weight alone.
void AddWeight(DType dtype, const WeightView& w, Card* card) {
  const TensorView norms = Matrix(DType::kF32, 1, w.rows());
  card->Add(WeightNormsOp{w, norms});
  for (const int64_t r : {8, 16, 64}) {
    card->Add(FactoredNormOp{w, Matrix(DType::kF32, r, w.cols()), Matrix(DType::kF32, w.rows(), r),
                             norms, Matrix(DType::kF32, 1, w.rows()), dtype, 2});
  }
  if (!w.quantised()) return;
  const TensorView values = Matrix(dtype, w.rows(), w.cols());
  card->Add(DequantizeOp{w.quant, values});
  card->Add(DequantizeOp{plan_table::PlanarWeight(4, w.rows(), w.cols()), values});
  card->Add(QuantizeOp{values, w.quant});
  if (!w.quant.double_quant()) return;
  card->Add(QuantizeScalesOp{Matrix(DType::kF32, 1, w.quant.blocks()), w.quant});
}

/// Products of 64 blocks of `width` features.
void AddBlocks(DType dtype, int64_t M, int64_t width, Card* card) {
  constexpr int64_t kBlocks = 64;
  const TensorView x = Matrix(dtype, M * kBlocks, width);
  const TensorView w = Matrix(dtype, width * kBlocks, width);
  const TensorView y = Matrix(dtype, M * kBlocks, width);
  card->Add(BlockMatmulOp{x, w, y, kBlocks});
  card->Add(BlockMatmulInputGradOp{y, w, x, kBlocks});
  card->Add(BlockWeightGradOp{y, x, Matrix(DType::kF32, width * kBlocks, width), kBlocks});
}

/// What goes element by element over [M, N].
void AddElementwise(DType dtype, int64_t M, int64_t N, Card* card) {
  const TensorView a = Matrix(dtype, M, N);
  const TensorView b = Matrix(dtype, M, N);
  const TensorView c = Matrix(dtype, M, N);
  const TensorView y = Matrix(dtype, M, N);
  card->Add(MultiplyAddOp{a, b, c, y});
  MapOp map;
  map.a = a;
  map.y = y;
  card->Add(map);
#define LOWRANK_ADD_GATE(id, name)                         \
  card->Add(GatedActivationOp{a, b, y, GateFunction::id}); \
  card->Add(GatedActivationBackwardOp{a, b, c, y, Matrix(dtype, M, N), GateFunction::id});
  LOWRANK_FOR_EACH_GATE_FUNCTION(LOWRANK_ADD_GATE)
#undef LOWRANK_ADD_GATE
  card->Add(SumProductOp{a, b, Matrix(DType::kF32, 1, N), 0});
  card->Add(SumProductOp{a, b, Matrix(DType::kF32, 1, M), 1});
  MapFeaturesOp features;
  features.x = a;
  features.map.index = Some<int32_t>();
  features.map.inputs = N;
  features.map.outputs = N;
  features.map.entries = N;
  features.y = y;
  card->Add(features);
  for (const DType other : kDTypes) card->Add(CastOp{a, Matrix(other, M, N)});
  RandomOp random;
  random.y = y;
  card->Add(random);
}

/// A step over the factors of two layers.
void AddOptimizers(DType dtype, Card* card) {
  const int64_t shapes[][2] = {{16, 4096}, {4096, 16}, {16, 4096}, {14336, 16}};
  std::vector<GradientPart> gradients;
  std::vector<ParameterPart> parts;
  GlobalNormOp norm;
  OptimizerStepOp step;
  for (const auto& [rows, cols] : shapes) {
    ParameterPart part;
    part.p = Matrix(dtype, rows, cols);
    part.g = Matrix(dtype, rows, cols);
    for (TensorView& state : part.states) state = Matrix(DType::kF32, rows, cols);
    part.first_piece = norm.pieces;
    parts.push_back(part);
    gradients.push_back({part.g, norm.pieces});
    norm.pieces += OptimizerPieces(rows * cols);
  }
  norm.parts = gradients.data();
  norm.count = static_cast<int64_t>(gradients.size());
  norm.norm = Matrix(DType::kF32, 1, 1);
  card->Add(norm);
  step.settings = {0.9, 0.999, 1e-8f, 1};
  step.parts = parts.data();
  step.count = norm.count;
  step.pieces = norm.pieces;
  step.norm = norm.norm;
  step.steps_done = Matrix(DType::kF32, 1, 1);
  card->Add(step);
}

/// Both passes, with and without what a launch of its own prepares; and steps behind a cache.
void AddAttention(DType dtype, int64_t head_dim, Card* card) {
  constexpr int64_t kRows = 2048;
  AttentionOp op;
  op.shape.heads = 8;
  op.shape.kv_heads = 2;
  op.shape.head_dim = head_dim;
  const TensorView queries = Matrix(dtype, kRows, 8 * head_dim);
  const TensorView keys = Matrix(dtype, kRows, 2 * head_dim);
  op.q.matrix = queries;
  op.k.matrix = keys;
  op.v.matrix = Matrix(dtype, kRows, 2 * head_dim);
  op.o = Matrix(dtype, kRows, 8 * head_dim);
  op.lse = Matrix(DType::kF32, 8, kRows);
  card->Add(op);
  op.shape.rope = Matrix(DType::kF32, kRows, head_dim);
  op.shape.documents = {Some<int32_t>(), kRows, kRows, true};
  card->Add(op);
  AttentionBackwardOp backward;
  backward.shape = op.shape;
  backward.q = op.q;
  backward.k = op.k;
  backward.v = op.v;
  backward.o = op.o;
  backward.lse = op.lse;
  backward.d_o = Matrix(dtype, kRows, 8 * head_dim);
  backward.dq.matrix = Matrix(dtype, kRows, 8 * head_dim);
  backward.dk.matrix = Matrix(dtype, kRows, 2 * head_dim);
  backward.dv.matrix = Matrix(dtype, kRows, 2 * head_dim);
  card->Add(backward);
  op.shape.documents = IndexView();
  op.q.matrix.rows = op.k.matrix.rows = op.v.matrix.rows = op.o.rows = 1;
  op.lse = TensorView();
  op.k_cache = Matrix(dtype, kRows, 2 * head_dim);
  op.v_cache = Matrix(dtype, kRows, 2 * head_dim);
  op.past = kRows - 1;
  card->Add(op);
}

/// What a launch of the large products on Hopper does beside them.
void PrintWgmma(const cuda::LaunchStep& step) {
  gpu::GemmWgmmaParams params;
  if (step.param_bytes != sizeof(params)) return;
  std::memcpy(&params, step.params.data(), sizeof(params));
  std::printf(", \"tiles\": [%u, %u], \"slab_steps\": %u, \"h\": %s, \"grads\": [", params.tiles_m,
              params.tiles_n, params.slab_steps, params.shrink.x != nullptr ? "true" : "false");
  const char* comma = "";
  for (const gpu::RowGrad& grad : params.grads) {
    if (grad.x == nullptr) continue;
    const auto of_split = static_cast<unsigned long long>(grad.rows_per_split);
    std::printf("%s[%u, %u, %llu]", comma, grad.blocks, grad.splits, of_split);
    comma = ", ";
  }
  std::printf("]");
}

template <typename Op>
bool PrintLaunches(const char* text, const Op& op) {
  cuda::Workspace workspace(Some(size_t{1} << 34));
  Plan plan;
  Status status = op.Check();
  if (status.ok()) status = MakePlan(op, LimitsOf(90), &workspace, &plan);
  if (!status.ok()) {
    std::fprintf(stderr, "%s: %s\n", text, status.message().c_str());
    return false;
  }
  std::printf("{\"case\": \"%s\", \"launches\": [", text);
  const char* comma = "";
  for (const cuda::LaunchStep& step : plan.steps) {
    std::printf("%s{\"kernel\": \"%s\", \"blocks\": [%u, %u], \"cluster\": %u", comma, step.kernel,
                step.grid.x, step.grid.y, step.cluster);
    if (std::strncmp(step.kernel, "gemm_wgmma_128", 14) == 0) PrintWgmma(step);
    std::printf("}");
    comma = ", ";
  }
  std::printf("]}\n");
  return true;
}

/// op,M,N,K,r,dropout,format,double quantisation,dtype of the factors
bool PrintCase(const char* text) {
  char name[32], format[16], factors[16];
  long long M, N, K, r;
  double dropout;
  int double_quant;
  if (std::sscanf(text, "%31[^,],%lld,%lld,%lld,%lld,%lf,%15[^,],%d,%15s", name, &M, &N, &K, &r,
                  &dropout, format, &double_quant, factors) != 9) {
    std::fprintf(stderr, "not a case: %s\n", text);
    return false;
  }
  const DType factor = std::strcmp(factors, "bf16") == 0 ? DType::kBF16 : DType::kF32;
  const std::string op = name;
  WeightView w = Weight(format, DType::kBF16, double_quant != 0, N, K);
  LoraForwardOp forward;
  forward.x = Matrix(DType::kBF16, M, K);
  forward.w = w;
  forward.y = Matrix(DType::kBF16, M, N);
  forward.scaling = 2;
  forward.dropout.p = static_cast<float>(dropout);
  if (op == "matmul") return PrintLaunches(text, BaseOf(forward));
  if (op == "matmulInt8") {
    forward.compute = Compute::kInt8;
    forward.w.quant.rowwise = true;
    return PrintLaunches(text, BaseOf(forward));
  }
  if (op == "quantize") return PrintLaunches(text, QuantizeOp{Matrix(DType::kBF16, N, K), w.quant});
  if (op == "dequantize") {
    return PrintLaunches(text, DequantizeOp{w.quant, Matrix(DType::kBF16, N, K)});
  }
  forward.lora_a = Matrix(factor, r, K);
  forward.lora_b = Matrix(factor, N, r);
  forward.h = Matrix(DType::kF32, M, r);
  if (op == "loraForward") return PrintLaunches(text, forward);
  if (op == "factoredNorm") {
    return PrintLaunches(
        text, FactoredNormOp{w, forward.lora_a, forward.lora_b, Matrix(DType::kF32, 1, N),
                             Matrix(DType::kF32, 1, N), DType::kBF16, 2});
  }
  LoraBackwardOp backward;
  backward.dy = forward.y;
  backward.x = forward.x;
  backward.w = w;
  backward.lora_a = forward.lora_a;
  backward.lora_b = forward.lora_b;
  backward.h = forward.h;
  backward.dx = Matrix(DType::kBF16, M, K);
  backward.d_lora_a = Matrix(factor, r, K);
  backward.d_lora_b = Matrix(factor, N, r);
  backward.dropout = forward.dropout;
  backward.scaling = 2;
  return PrintLaunches(text, backward);
}

}  // namespace

int main(int argc, char** argv) {
  bool complete = true;
  for (int i = 1; i < argc; ++i) complete = PrintCase(argv[i]) && complete;
  if (argc > 1) return complete ? 0 : 1;
  for (const Architecture& architecture : kArchitectures) {
    Card card(architecture);
    for (const DType dtype : kDTypes) {
      for (const char* format : {"", "nf4", "int8"}) {
        for (const bool double_quant : {false, true}) {
          if (*format == 0 && double_quant) continue;
          // The last: rows that are not whole 16-byte pieces.
          const int64_t shapes[][2] = {{4096, 4096}, {4096, 14336}, {2048, 4096}, {1536, 1536},
                                       {1024, 4096}, {1024, 1024},  {4100, 4100}};
          for (const auto& [N, K] : shapes) {
            const WeightView w = Weight(format, dtype, double_quant, N, K);
            AddWeight(dtype, w, &card);
            for (const int64_t M : {1, 8, 16, 32, 64, 200, 1024, 4096}) {
              AddProducts(dtype, w, M, &card);
            }
          }
        }
      }
      plan_table::AddExpertLayers(dtype, &card);
      AddOptimizers(dtype, &card);
      for (const int64_t head_dim : {64, 128, 256}) AddAttention(dtype, head_dim, &card);
      for (const int64_t M : {1, 64, 512, 4096}) AddInt8(dtype, M, 4096, 4096, &card);
      for (const int64_t M : {1, 64, 4096}) {
        for (const int64_t width : {4, 64}) AddBlocks(dtype, M, width, &card);
        for (const int64_t N : {4096, 14336}) AddElementwise(dtype, M, N, &card);
        for (const int64_t D : {128, 4096}) plan_table::AddNorms(dtype, M, D, &card);
        for (const char* format : {"", "nf4"}) plan_table::AddEnds(dtype, format, M, 4096, &card);
      }
    }
    complete = card.Print() && complete;
  }
  return complete ? 0 : 1;
}
