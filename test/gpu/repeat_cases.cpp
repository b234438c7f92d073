#include <cstring>
#include <functional>

#include "test/gpu/ops_check.h"

namespace lowrank::cuda {
namespace {

constexpr int kRuns = 50;
constexpr int kRoundsOnTwoStreams = 10;

struct Part {
  void* data;
  size_t bytes;
};

/// One place for results, and the launches that write there.
struct Lane {
  std::vector<Part> outputs;
  std::vector<Part> workspace;
  Plan plan;
  CUstream stream = nullptr;
};

using Bytes = std::vector<unsigned char>;

/// A case makes the launches of one lane.
using MakeLane = std::function<Status(Operands*, Lane*)>;

Part PartOf(const TensorView& view) { return {view.data, view.bytes()}; }

template <typename Op>
Status Finish(OpsCheck* check, const Op& op, Operands* operands, Lane* lane) {
  LOWRANK_RETURN_IF_ERROR(operands->status());
  // Planned here and not by PlanOp: the bytes of the workspace are overwritten between the runs.
  LOWRANK_RETURN_IF_ERROR(op.Check());
  Workspace measure;
  const DeviceLimits& limits = check->machine->context->limits();
  LOWRANK_RETURN_IF_ERROR(MakePlan(op, limits, &measure, &lane->plan));
  const Part part = {operands->memory().Take(measure.bytes()), measure.bytes()};
  LOWRANK_RETURN_IF_ERROR(operands->status());
  if (part.bytes > 0) lane->workspace.push_back(part);
  Workspace workspace(part.data);
  lane->plan = Plan();
  return MakePlan(op, limits, &workspace, &lane->plan);
}

Bytes ReadAll(Operands* operands, const Lane& lane) {
  Bytes bytes;
  for (const Part& part : lane.outputs) {
    const size_t at = bytes.size();
    bytes.resize(at + part.bytes);
    operands->memory().Read(part.data, bytes.data() + at, part.bytes);
  }
  return bytes;
}

/// Nothing of a run before is left: neither in the results nor in the workspace.
void Dirty(Operands* operands, const Lane& lane, unsigned char value) {
  for (const Part& part : lane.outputs) operands->memory().Set(part.data, 0xff, part.bytes);
  for (const Part& part : lane.workspace) operands->memory().Set(part.data, value, part.bytes);
}

void CheckOne(OpsCheck* check, const std::string& name, Operands* operands, const MakeLane& make) {
  Lane lanes[2];
  Status status = operands->status();
  const Driver& driver = check->machine->driver();
  for (Lane& lane : lanes) {
    if (status.ok()) status = make(operands, &lane);
    if (status.ok()) {
      status = check->machine->Check(driver.cuStreamCreate(&lane.stream, CU_STREAM_NON_BLOCKING),
                                     "cuStreamCreate");
    }
  }
  const int runs = check->tiny ? 5 : kRuns;
  const int rounds = check->tiny ? 2 : kRoundsOnTwoStreams;
  Bytes first;
  int differing = 0;
  for (int run = 0; run < runs && status.ok(); ++run) {
    Dirty(operands, lanes[0], static_cast<unsigned char>(run * 37));
    status = RunPlan(check->machine, lanes[0].plan, check->machine->home());
    if (!status.ok()) break;
    operands->memory().Wait();
    Bytes bytes = ReadAll(operands, lanes[0]);
    if (check->plant && run == 3) bytes[bytes.size() / 2] ^= 1;
    if (run == 0) first = bytes;
    differing += bytes == first ? 0 : 1;
    status = operands->status();
  }
  int apart = 0;
  for (int round = 0; round < rounds && status.ok(); ++round) {
    for (const Lane& lane : lanes) Dirty(operands, lane, static_cast<unsigned char>(round));
    for (int repeat = 0; repeat < 4; ++repeat) {
      for (const Lane& lane : lanes) {
        if (status.ok()) status = RunPlan(check->machine, lane.plan, lane.stream);
      }
    }
    for (const Lane& lane : lanes) {
      if (status.ok()) {
        status =
            check->machine->Check(driver.cuStreamSynchronize(lane.stream), "cuStreamSynchronize");
      }
    }
    if (!status.ok()) break;
    for (const Lane& lane : lanes) apart += ReadAll(operands, lane) == first ? 0 : 1;
    status = operands->status();
  }
  for (const Lane& lane : lanes) {
    if (lane.stream != nullptr) driver.cuStreamDestroy_v2(lane.stream);
  }
  if (!status.ok()) return check->Report(name, status);
  // A result that nobody wrote is the same every time too.
  bool written = false;
  for (const unsigned char byte : first) written = written || byte != 0xff;
  check->Report(name, differing == 0 && apart == 0 && written,
                ",\"runs\":" + std::to_string(runs) +
                    ",\"differing\":" + std::to_string(differing) + ",\"on_two_streams\":" +
                    std::to_string(2 * rounds) + ",\"differing_there\":" + std::to_string(apart) +
                    ",\"bytes\":" + std::to_string(first.size()));
}

struct Adapter {
  TensorView lora_a, lora_b;
};

Adapter MakeAdapter(Operands* operands, int64_t N, int64_t K, int64_t r) {
  return {operands->Normal(r, K, DType::kF32, 0.02), operands->Normal(N, r, DType::kF32, 0.02)};
}

void CheckProducts(OpsCheck* check, DType dtype) {
  const int64_t N = check->tiny ? 136 : 4096;
  const int64_t K = check->tiny ? 192 : 4096;
  for (const int64_t M :
       check->tiny ? std::vector<int64_t>{3, 70} : std::vector<int64_t>{1, 16, 64, 333, 2048}) {
    Operands operands(check->machine);
    const WeightView w = operands.Weight("nf4", true, N, K, dtype, 0.02);
    const TensorView x = operands.Normal(M, K, dtype);
    const TensorView dy = operands.Normal(M, N, dtype);
    const std::string what =
        std::string(DTypeName(dtype)) + " nf4 M " + std::to_string(M) + ", again and again";
    CheckOne(check, "matmul " + what, &operands, [&](Operands* o, Lane* lane) {
      MatmulOp op;
      op.x = x;
      op.w = w;
      op.y = o->Tensor(M, N, dtype);
      lane->outputs = {PartOf(op.y)};
      return Finish(check, op, o, lane);
    });
    CheckOne(check, "matmulInputGrad " + what, &operands, [&](Operands* o, Lane* lane) {
      MatmulInputGradOp op;
      op.dy = dy;
      op.w = w;
      op.dx = o->Tensor(M, K, dtype);
      lane->outputs = {PartOf(op.dx)};
      return Finish(check, op, o, lane);
    });
  }
}

void CheckAdapters(OpsCheck* check, DType dtype) {
  const int64_t N = check->tiny ? 136 : 4096;
  const int64_t K = check->tiny ? 192 : 4096;
  const int64_t r = 16;
  for (const int64_t M : check->tiny ? std::vector<int64_t>{70} : std::vector<int64_t>{16, 2048}) {
    Operands operands(check->machine);
    const WeightView w = operands.Weight("nf4", true, N, K, dtype, 0.02);
    const TensorView x = operands.Normal(M, K, dtype);
    const TensorView dy = operands.Normal(M, N, dtype);
    const TensorView h = operands.Normal(M, r, DType::kF32);
    const Adapter adapter = MakeAdapter(&operands, N, K, r);
    const std::string what = std::string(DTypeName(dtype)) + " nf4 M " + std::to_string(M) +
                             " r 16 dropout 0.1, again and again";
    CheckOne(check, "loraForward " + what, &operands, [&](Operands* o, Lane* lane) {
      LoraForwardOp op;
      op.x = x;
      op.w = w;
      op.lora_a = adapter.lora_a;
      op.lora_b = adapter.lora_b;
      op.h = o->Tensor(M, r, DType::kF32);
      op.y = o->Tensor(M, N, dtype);
      op.scaling = 2;
      op.dropout.p = 0.1;
      op.dropout.seed = 7;
      lane->outputs = {PartOf(op.y), PartOf(op.h)};
      return Finish(check, op, o, lane);
    });
    CheckOne(check, "loraBackward " + what, &operands, [&](Operands* o, Lane* lane) {
      LoraBackwardOp op;
      op.dy = dy;
      op.x = x;
      op.w = w;
      op.lora_a = adapter.lora_a;
      op.lora_b = adapter.lora_b;
      op.h = h;
      op.dx = o->Tensor(M, K, dtype);
      op.d_lora_a = o->Tensor(r, K, DType::kF32);
      op.d_lora_b = o->Tensor(N, r, DType::kF32);
      op.d_bias = o->Tensor(1, N, DType::kF32);
      op.d_lora_bias = o->Tensor(1, N, DType::kF32);
      op.scaling = 2;
      op.dropout.p = 0.1;
      op.dropout.seed = 7;
      lane->outputs = {PartOf(op.dx), PartOf(op.d_lora_a), PartOf(op.d_lora_b), PartOf(op.d_bias),
                       PartOf(op.d_lora_bias)};
      return Finish(check, op, o, lane);
    });
  }
}

void CheckStreaming(OpsCheck* check) {
  const int64_t N = check->tiny ? 24 : 4096;
  const int64_t K = check->tiny ? 700 : 4096;
  Operands operands(check->machine);
  const TensorView dense = operands.Normal(N, K, DType::kBF16);
  const WeightView w = operands.Weight("nf4", true, N, K, DType::kBF16, 1);
  CheckOne(check, "quantize nf4 doubly, again and again", &operands, [&](Operands* o, Lane* lane) {
    QuantizeOp op;
    op.w = dense;
    op.out = o->Quantised("nf4", N, K, true);
    lane->outputs = {{op.out.codes, op.out.code_bytes()},
                     {op.out.absmax_8bit, static_cast<size_t>(op.out.blocks())},
                     {op.out.nested_absmax, static_cast<size_t>(op.out.nested_blocks()) * 4},
                     {op.out.absmax_offset, 4}};
    return Finish(check, op, o, lane);
  });
  CheckOne(check, "dequantize nf4 doubly, again and again", &operands,
           [&](Operands* o, Lane* lane) {
             DequantizeOp op;
             op.w = w.quant;
             op.y = o->Tensor(N, K, DType::kBF16);
             lane->outputs = {PartOf(op.y)};
             return Finish(check, op, o, lane);
           });
}

}  // namespace

void CheckRepeats(OpsCheck* check) {
  CheckStreaming(check);
  for (const DType dtype : {DType::kBF16, DType::kF32}) {
    CheckProducts(check, dtype);
    CheckAdapters(check, dtype);
  }
}

}  // namespace lowrank::cuda
