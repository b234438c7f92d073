/// Times of ops on a GPU, without JavaScript and without the queue.
///
///   gpu_bench [--device LIBRARY] [--quick] CASE ...
///
///   CASE  op,M,N,K,r,dropout,format,double   such as loraForward,8192,4096,4096,16,0.1,nf4,1
///
/// op is matmul, matmulInt8 (of codes, the weight rowwise), matmulInputGrad, loraForward,
/// loraBackward, groupedForward (in bf16: up to 32 rows an adapter a row, of more 8 adapters that
/// take turns), groupedAdapters (the same without its base product), quantize, quantizeRows
/// (rowwise int8), dequantize; cublas (a dense product of the same M, N, K); copy (M bytes by the
/// driver) or copyKernel (by a kernel of ours). Activations are bf16. The GPU is the system's
/// driver with lowrank.fatbin beside this program; --device names an emulator in its place, and
/// --quick takes one sample, to prove the program.
///
/// Every call has operands of its own, as many as do not fit the L2 cache twice, and they take
/// turns. One line of JSON a case: what bench/gpu/run.mjs makes a table of. Exit status: 0, 1 where
/// a case failed, 2 where nothing could be run.
#include <cstdlib>
#include <cstring>

#include "bench/gpu/cublas.h"
#include "bench/gpu/timing.h"
#include "test/gpu/operands.h"

namespace lowrank::cuda {
namespace {

struct BenchCase {
  std::string text;
  std::string op;
  int64_t M = 0, N = 0, K = 0, r = 0;
  double dropout = 0;
  std::string format;
  bool double_quant = false;
};

bool Parse(const std::string& text, BenchCase* c) {
  std::vector<std::string> fields(1);
  for (const char one : text) {
    if (one == ',') {
      fields.emplace_back();
    } else {
      fields.back() += one;
    }
  }
  fields.resize(8);
  c->text = text;
  c->op = fields[0];
  c->M = std::atoll(fields[1].c_str());
  c->N = std::atoll(fields[2].c_str());
  c->K = std::atoll(fields[3].c_str());
  c->r = std::atoll(fields[4].c_str());
  c->dropout = std::atof(fields[5].c_str());
  c->format = fields[6];
  c->double_quant = fields[7] == "1";
  return c->M > 0;
}

class Bench {
 public:
  Bench(Machine* machine, bool quick) : machine_(*machine), quick_(quick), cublas_memory_(machine) {
    cublas_status_ = cublas_.Open(&cublas_memory_);
  }

  const Status& cublas_status() const { return cublas_status_; }
  const std::string& cublas_version() const { return cublas_.version(); }

  Status Run(const BenchCase& c, Timing* timing) {
    Operands operands(&machine_);
    std::vector<QueueCall> calls;
    const int64_t call_bytes = std::max<int64_t>(BytesOf(c), 1);
    const int64_t rotation_bytes = 2 * machine_.gpu.limits.l2_bytes;
    const int64_t wanted = quick_ ? 2 : std::max<int64_t>(2, rotation_bytes / call_bytes + 1);
    while (static_cast<int64_t>(calls.size()) < wanted) {
      LOWRANK_RETURN_IF_ERROR(Add(c, &operands, &calls));
    }
    TimingOptions options;
    options.distinct_calls = static_cast<int>(calls.size());
    if (quick_) {
      options.samples = 1;
      options.sample_us = 0;
      options.warm_up_us = 0;
    }
    return Measure(
        &machine_, [&](int i, CUstream stream) { return calls[static_cast<size_t>(i)](0, stream); },
        options, timing);
  }

 private:
  static bool IsStreaming(const BenchCase& c) {
    return c.op == "quantize" || c.op == "quantizeRows" || c.op == "dequantize";
  }

  static bool IsGrouped(const BenchCase& c) {
    return c.op == "groupedForward" || c.op == "groupedAdapters";
  }

  /// As adaptersOf in bench/gpu/cases.mjs.
  static int64_t AdaptersOf(const BenchCase& c) { return c.M <= 32 ? c.M : 8; }

  /// What a call reads and writes, roughly: for the rotation.
  static int64_t BytesOf(const BenchCase& c) {
    if (c.op == "copy" || c.op == "copyKernel") return 2 * c.M;
    const int64_t weight = c.op == "cublas"     ? 2 * c.N * c.K
                           : c.format == "int8" ? c.N * c.K
                                                : c.N * c.K / 2;
    if (IsStreaming(c)) return weight + 2 * c.N * c.K;
    const int64_t adapters = IsGrouped(c) ? AdaptersOf(c) : 0;
    return weight + 2 * (c.M + adapters * c.r) * (c.N + c.K);
  }

  /// One op's launches over the workspace that all share, as in the backend.
  template <typename Op>
  Status Plan1(const Op& op, Operands* operands, std::vector<QueueCall>* calls) {
    LOWRANK_RETURN_IF_ERROR(operands->status());
    LOWRANK_RETURN_IF_ERROR(op.Check());
    const DeviceLimits& limits = machine_.context->limits();
    Workspace measure;
    Plan plan;
    LOWRANK_RETURN_IF_ERROR(MakePlan(op, limits, &measure, &plan));
    if (calls->empty()) workspace_ = operands->memory().Take(measure.bytes());
    LOWRANK_RETURN_IF_ERROR(operands->status());
    Workspace workspace(workspace_);
    plan = Plan();
    LOWRANK_RETURN_IF_ERROR(MakePlan(op, limits, &workspace, &plan));
    calls->push_back(
        [this, plan](int, CUstream stream) { return RunPlan(&machine_, plan, stream); });
    return Status();
  }

  Status Add(const BenchCase& c, Operands* o, std::vector<QueueCall>* calls) {
    if (c.op == "copy" || c.op == "copyKernel") return AddCopy(c, o, calls);
    if (c.op == "cublas") return AddCublas(c, o, calls);
    if (IsStreaming(c)) return AddStreaming(c, o, calls);
    return AddProduct(c, o, calls);
  }

  Status AddCopy(const BenchCase& c, Operands* o, std::vector<QueueCall>* calls) {
    CastOp op;
    op.src = o->Normal(1, c.M / 4, DType::kF32);
    op.dst = o->Tensor(1, c.M / 4, DType::kF32);
    if (c.op == "copyKernel") return Plan1(op, o, calls);
    LOWRANK_RETURN_IF_ERROR(o->status());
    calls->push_back([this, op](int, CUstream stream) {
      return machine_.Check(machine_.driver().cuMemcpyDtoDAsync_v2(
                                DeviceMemory::Address(op.dst.data),
                                DeviceMemory::Address(op.src.data), op.src.bytes(), stream),
                            "cuMemcpyDtoDAsync_v2");
    });
    return Status();
  }

  Status AddCublas(const BenchCase& c, Operands* o, std::vector<QueueCall>* calls) {
    LOWRANK_RETURN_IF_ERROR(cublas_status_);
    const TensorView x = o->Normal(c.M, c.K, DType::kBF16);
    const TensorView w = o->Normal(c.N, c.K, DType::kBF16, 0.02);
    const TensorView y = o->Tensor(c.M, c.N, DType::kBF16);
    LOWRANK_RETURN_IF_ERROR(o->status());
    calls->push_back(
        [this, x, w, y](int, CUstream stream) { return cublas_.Product(x, w, y, stream); });
    return Status();
  }

  Status AddStreaming(const BenchCase& c, Operands* o, std::vector<QueueCall>* calls) {
    QuantizeOp quantize;
    quantize.w = o->Normal(c.N, c.K, DType::kBF16, 0.02);
    quantize.out = o->Quantised(c.format.c_str(), c.N, c.K, c.double_quant);
    if (c.op == "quantizeRows") {
      quantize.out.rowwise = true;
      // As few scales as the library stores.
      while (quantize.out.blocksize < 4096 && c.K % (2 * quantize.out.blocksize) == 0) {
        quantize.out.blocksize *= 2;
      }
    }
    if (c.op != "dequantize") return Plan1(quantize, o, calls);
    o->Run(quantize);
    DequantizeOp dequantize;
    dequantize.w = quantize.out;
    dequantize.y = quantize.w;  // over what it came from
    return Plan1(dequantize, o, calls);
  }

  Status AddProduct(const BenchCase& c, Operands* o, std::vector<QueueCall>* calls) {
    const DType dtype = DType::kBF16;
    const WeightView w = o->Weight(c.format.c_str(), c.double_quant, c.N, c.K, dtype, 0.02);
    const TensorView x = o->Normal(c.M, c.K, dtype);
    if (c.op == "matmul" || c.op == "matmulInt8") {
      MatmulOp op;
      op.x = x;
      op.w = w;
      if (c.op == "matmulInt8") {
        // Codes as they come: a row's scale is that of its first block.
        op.w.quant.rowwise = true;
        op.compute = Compute::kInt8;
      }
      op.y = o->Tensor(c.M, c.N, dtype);
      return Plan1(op, o, calls);
    }
    const TensorView dy = o->Normal(c.M, c.N, dtype);
    if (IsGrouped(c)) return AddGrouped(c, x, w, dy, o, calls);
    if (c.op == "matmulInputGrad") {
      MatmulInputGradOp op;
      op.dy = dy;
      op.w = w;
      op.dx = x;
      return Plan1(op, o, calls);
    }
    DropoutSpec dropout;
    dropout.p = c.dropout;
    dropout.seed = 7;
    const TensorView lora_a = o->Normal(c.r, c.K, DType::kF32, 0.02);
    const TensorView lora_b = o->Normal(c.N, c.r, DType::kF32, 0.02);
    if (c.op == "loraForward") {
      LoraForwardOp op;
      op.x = x;
      op.w = w;
      op.lora_a = lora_a;
      op.lora_b = lora_b;
      op.h = o->Tensor(c.M, c.r, DType::kF32);
      op.y = dy;
      op.scaling = 2;
      op.dropout = dropout;
      return Plan1(op, o, calls);
    }
    if (c.op == "factoredNorm") {
      // lora_a is x, of r rows; the factors as they are beside 16-bit activations.
      FactoredNormOp op;
      op.w = w;
      op.lora_a = x;
      op.lora_b = o->Normal(c.N, c.r, dtype, 0.02);
      op.product = dtype;
      op.squares = o->Normal(1, c.N, DType::kF32);
      op.norms = o->Tensor(1, c.N, DType::kF32);
      op.scaling = 2;
      return Plan1(op, o, calls);
    }
    if (c.op != "loraBackward") return Status(Code::kValue, "there is no op " + c.op);
    LoraBackwardOp op;
    op.dy = dy;
    op.x = x;
    op.w = w;
    op.lora_a = lora_a;
    op.lora_b = lora_b;
    op.h = o->Normal(c.M, c.r, DType::kF32);
    op.dx = o->Tensor(c.M, c.K, dtype);
    op.d_lora_a = o->Tensor(c.r, c.K, DType::kF32);
    op.d_lora_b = o->Tensor(c.N, c.r, DType::kF32);
    op.scaling = 2;
    op.dropout = dropout;
    return Plan1(op, o, calls);
  }

  /// The table of adapters is in memory before anything is timed.
  Status AddGrouped(const BenchCase& c, const TensorView& x, const WeightView& w,
                    const TensorView& y, Operands* o, std::vector<QueueCall>* calls) {
    const int64_t count = AdaptersOf(c);
    std::vector<AdapterRows> adapters(static_cast<size_t>(count));
    std::vector<int32_t> rows;
    for (int64_t e = 0; e < count; ++e) {
      AdapterRows& adapter = adapters[static_cast<size_t>(e)];
      adapter.lora_a = o->Normal(c.r, c.K, DType::kBF16, 0.02);
      adapter.lora_b = o->Normal(c.N, c.r, DType::kBF16, 0.02);
      adapter.scaling = 2;
      adapter.first = static_cast<int64_t>(rows.size());
      adapter.h_begin = adapter.first * c.r;
      for (int64_t m = e; m < c.M; m += count) rows.push_back(static_cast<int32_t>(m));
      adapter.count = static_cast<int64_t>(rows.size()) - adapter.first;
    }
    GroupedForwardOp op;
    op.x = x;
    op.w = w;
    op.table = {adapters.data(), count, rows.data(), rows.data(), c.M, 1, c.M * c.r};
    op.h = o->Tensor(1, c.M * c.r, DType::kF32);
    op.y = y;
    LOWRANK_RETURN_IF_ERROR(o->status());
    Plan plan;
    LOWRANK_RETURN_IF_ERROR(PlanOp(&machine_, op, &o->memory(), &plan));
    o->memory().Write(plan.upload_to, plan.upload.data(), plan.upload.size());
    LOWRANK_RETURN_IF_ERROR(o->status());
    LOWRANK_RETURN_IF_ERROR(RunPlan(&machine_, plan, machine_.home()));
    o->memory().Wait();
    if (c.op == "groupedAdapters") {
      std::vector<LaunchStep> own;
      for (const LaunchStep& step : plan.steps) {
        if (std::strncmp(step.kernel, "grouped_", 8) == 0) own.push_back(step);
      }
      plan.steps = std::move(own);
    }
    calls->push_back(
        [this, plan](int, CUstream stream) { return RunPlan(&machine_, plan, stream); });
    return o->status();
  }

  Machine& machine_;
  const bool quick_;
  DeviceMemory cublas_memory_;
  Cublas cublas_;
  Status cublas_status_;
  void* workspace_ = nullptr;
};

int Main(const char* library, bool quick, const std::vector<BenchCase>& cases) {
  Machine machine;
  machine.name = "the device";
  const Status started = StartMachine(library, "lowrank.fatbin", &machine);
  if (!started.ok()) {
    std::fprintf(stderr, "%s\n", started.message().c_str());
    return 2;
  }
  PrintMachine(machine);
  Bench bench(&machine, quick);
  std::printf("{\"cublas\":\"%s\",\"missing\":\"%s\"}\n", bench.cublas_version().c_str(),
              JsonText(bench.cublas_status().message()).c_str());
  bool all = true;
  for (const BenchCase& c : cases) {
    if (c.op == "cublas" && !bench.cublas_status().ok()) continue;
    Timing timing;
    const Status status = bench.Run(c, &timing);
    all = all && status.ok();
    const std::string outcome =
        status.ok() ? TimingJson(timing) : "\"error\":\"" + JsonText(status.message()) + "\"";
    std::printf("{\"case\":\"%s\",%s}\n", JsonText(c.text).c_str(), outcome.c_str());
    std::fflush(stdout);
  }
  return all ? 0 : 1;
}

}  // namespace
}  // namespace lowrank::cuda

int main(int count, char** values) {
  const char* library = nullptr;
  bool quick = false;
  std::vector<lowrank::cuda::BenchCase> cases;
  for (int i = 1; i < count; ++i) {
    lowrank::cuda::BenchCase c;
    if (std::strcmp(values[i], "--device") == 0 && i + 1 < count) {
      library = values[++i];
    } else if (std::strcmp(values[i], "--quick") == 0) {
      quick = true;
    } else if (lowrank::cuda::Parse(values[i], &c)) {
      cases.push_back(c);
    } else {
      std::fprintf(stderr, "gpu_bench: %s is no case\n", values[i]);
      return 2;
    }
  }
  return lowrank::cuda::Main(library, quick, cases);
}
