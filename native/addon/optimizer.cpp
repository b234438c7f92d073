/// Steps of optimisers over lists of tensors.
#include <utility>
#include <vector>

#include "native/addon/bindings.h"
#include "native/addon/host_array.h"
#include "native/addon/operands.h"

namespace lowrank::addon {
namespace {

struct Kind {
  Optimizer kind;
  int states;
};

Kind KindArg(const Napi::Value& value, const char* op) {
  struct Row {
    const char* name;
    Kind kind;
  };
  constexpr Row kRows[] = {
#define LOWRANK_OPTIMIZER_ROW(id, name) \
  {name, {Optimizer::id, OptimizerRule<Optimizer::id>::kStates}},
      LOWRANK_FOR_EACH_OPTIMIZER(LOWRANK_OPTIMIZER_ROW)
#undef LOWRANK_OPTIMIZER_ROW
  };
  const std::string name = StringArg(value, op, "kind");
  for (const Row& row : kRows) {
    if (name == row.name) return row.kind;
  }
  ThrowIfError(value.Env(), Refuse(Code::kValue, op, "kind", "a known optimiser", name));
  return kRows[0].kind;
}

Napi::Array ListArg(const Napi::Value& value, const char* op, const char* operand) {
  if (!value.IsArray()) {
    ThrowIfError(value.Env(),
                 Refuse(Code::kType, op, operand, "an array of tensors", "another value"));
  }
  return value.As<Napi::Array>();
}

/// The device of the first tensor.
Backend* BackendOf(const Napi::Array& list, const char* op, const char* operand) {
  if (list.Length() == 0) {
    ThrowIfError(list.Env(), Refuse(Code::kShape, op, operand, "at least one tensor", "none"));
  }
  return TensorOf(list.Get(0u), op, operand).storage->backend();
}

// globalNorm(tensors) -> norm [1]
Napi::Value GlobalNorm(const Napi::CallbackInfo& info) {
  constexpr const char* kOp = GlobalNormOp::kName;
  const Napi::Env env = info.Env();
  const Napi::Array list = ListArg(info[0], kOp, "tensors");
  Operands operands(env, kOp, BackendOf(list, kOp, "tensors"));
  const auto parts = std::make_shared<std::vector<GradientPart>>(list.Length());
  GlobalNormOp op;
  for (uint32_t i = 0; i < parts->size(); ++i) {
    GradientPart& part = (*parts)[i];
    part.g = operands.In(list.Get(i), "tensors");
    part.first_piece = op.pieces;
    op.pieces += OptimizerPieces(part.g.elems());
  }
  op.parts = parts->data();
  op.count = static_cast<int64_t>(parts->size());
  operands.Keep(parts);
  TensorHandle norm;
  op.norm = operands.Out(&norm, DType::kF32, {1});
  ThrowIfError(env, operands.backend()->Enqueue(op, operands.Take()));
  return WrapTensor(env, std::move(norm));
}

/// In the Float64Array: what all parameters share, then lrScale and weightDecay of each.
enum Number : uint32_t { kBeta1, kBeta2, kEps, kMaxNorm, kLr, kStep, kShared };
constexpr size_t kNumbersOfEach = 2;

// optimizerStep(kind, tensors, numbers, lr | null, stepsDone | null, norm | null)
// tensors: p, g and the states of each parameter. Updates p, the states and stepsDone.
Napi::Value OptimizerStep(const Napi::CallbackInfo& info) {
  constexpr const char* kOp = OptimizerStepOp::kName;
  const Napi::Env env = info.Env();
  const Kind kind = KindArg(info[0], kOp);
  const Napi::Array list = ListArg(info[1], kOp, "tensors");
  const auto fields = static_cast<uint32_t>(2 + kind.states);
  const uint32_t length = list.Length();
  const uint32_t count = length / fields;
  const HostArray given = HostArrayOf(info[2], kOp, "numbers");
  if (given.type != napi_float64_array || length % fields != 0 ||
      given.length != kShared + kNumbersOfEach * count) {
    ThrowIfError(
        env, Refuse(Code::kType, kOp, "numbers",
                    "a Float64Array of " + std::to_string(kShared) + " and two for each parameter",
                    "another value"));
  }
  // Copied before getters of the list can run.
  const std::vector<double> numbers = CopiedElements<double>(given);
  Operands operands(env, kOp, BackendOf(list, kOp, "parameters"));
  const auto parts = std::make_shared<std::vector<ParameterPart>>(count);
  OptimizerStepOp op;
  op.kind = kind.kind;
  for (uint32_t i = 0; i < count; ++i) {
    ParameterPart& part = (*parts)[i];
    part.p = operands.InOut(list.Get(i * fields), "parameters");
    part.g = operands.In(list.Get(i * fields + 1), "gradients");
    for (int s = 0; s < kind.states; ++s) {
      part.states[s] =
          operands.InOut(list.Get(i * fields + 2 + static_cast<uint32_t>(s)), "states");
    }
    const double* own = numbers.data() + kShared + kNumbersOfEach * i;
    part.lr_scale = static_cast<float>(own[0]);
    part.weight_decay = static_cast<float>(own[1]);
    part.first_piece = op.pieces;
    op.pieces += OptimizerPieces(part.p.elems());
  }
  op.parts = parts->data();
  op.count = count;
  operands.Keep(parts);
  op.settings.beta1 = numbers[kBeta1];
  op.settings.beta2 = numbers[kBeta2];
  op.settings.eps = static_cast<float>(numbers[kEps]);
  op.settings.max_norm = static_cast<float>(numbers[kMaxNorm]);
  op.lr = static_cast<float>(numbers[kLr]);
  const double step = numbers[kStep];
  op.step = step >= 0 && step <= 9e15 ? static_cast<int64_t>(step) : 0;
  op.lr_at = operands.OptionalIn(info[3], "lr");
  if (IsPresent(info[4])) op.steps_done = operands.InOut(info[4], "step");
  op.norm = operands.OptionalIn(info[5], "norm");
  ThrowIfError(env, operands.backend()->Enqueue(op, operands.Take()));
  return env.Undefined();
}

}  // namespace

void RegisterOptimizer(Napi::Env env, Napi::Object exports) {
  Export<GlobalNorm>(env, exports, "globalNorm");
  Export<OptimizerStep>(env, exports, "optimizerStep");
}

}  // namespace lowrank::addon
