// Steps of optimisers: the bits of the device "reference", for parameters of every type and size.
#include "test/native/kernel_operands.h"

namespace lowrank::cpu {
namespace {

constexpr DType kTypes[] = {DType::kF32, DType::kBF16, DType::kF16};
constexpr int64_t kSizes[] = {0, 1, 15, 16, 33, 1000, 16384, 16385, 33001};

/// A parameter with what belongs to it, all of one size.
struct Parameter {
  Dense p, g, m, v;

  Parameter(int64_t size, DType p_type, DType g_type)
      : p(1, size, p_type), g(1, size, g_type), m(1, size, DType::kF32), v(1, size, DType::kF32) {
    p.Fill();
    g.Fill(0.1);
    m.Fill(0.01);
    v.Fill();
    for (int64_t i = 0; i < size; ++i) {
      float& square = static_cast<float*>(v.view.data)[i];
      square = square * square * 0.01f;
    }
  }
};

std::vector<Parameter> Parameters() {
  g_state = 7;
  std::vector<Parameter> all;
  for (const int64_t size : kSizes) {
    for (const DType p_type : kTypes) {
      all.emplace_back(size, p_type, kTypes[all.size() % 3]);
      all.emplace_back(size, p_type, kTypes[(all.size() + 1) % 3]);
    }
  }
  return all;
}

/// Two steps over all of them, the second with a counter and a norm that clips.
Status Run(const KernelTable& table, const RunContext& context,
           const std::vector<Parameter>& parameters, Dense* norm) {
  std::vector<GradientPart> gradients;
  std::vector<ParameterPart> parts;
  GlobalNormOp sum;
  OptimizerStepOp step;
  for (const Parameter& own : parameters) {
    gradients.push_back({own.g.view, sum.pieces});
    ParameterPart part;
    part.p = own.p.view;
    part.g = own.g.view;
    part.states[0] = own.m.view;
    part.states[1] = own.v.view;
    part.lr_scale = 1 + static_cast<float>(parts.size() % 3);
    part.weight_decay = 0.1f * static_cast<float>(parts.size() % 4);
    part.first_piece = sum.pieces;
    parts.push_back(part);
    sum.pieces += OptimizerPieces(own.g.view.elems());
  }
  sum.parts = gradients.data();
  sum.count = static_cast<int64_t>(gradients.size());
  sum.norm = norm->view;
  LOWRANK_RETURN_IF_ERROR(sum.Check());
  LOWRANK_RETURN_IF_ERROR(table.global_norm(sum, context));
  step.settings = {0.9, 0.99, 1e-8f, std::numeric_limits<float>::infinity()};
  step.parts = parts.data();
  step.count = sum.count;
  step.pieces = sum.pieces;
  step.lr = 0.01f;
  step.step = 3;
  LOWRANK_RETURN_IF_ERROR(step.Check());
  LOWRANK_RETURN_IF_ERROR(table.optimizer_step(step, context));
  Dense done(1, 1, DType::kF32);
  *static_cast<float*>(done.view.data) = 700;
  step.steps_done = done.view;
  step.norm = norm->view;
  step.settings.max_norm = 0.5f;
  LOWRANK_RETURN_IF_ERROR(step.Check());
  return table.optimizer_step(step, context);
}

}  // namespace

void CheckOptimizers(const KernelTable& table, const RunContext& context) {
  const std::string what = std::string(table.isa) + " optimizer step";
  const std::vector<Parameter> expected = Parameters();
  const std::vector<Parameter> actual = Parameters();
  Dense expected_norm(1, 1, DType::kF32), norm(1, 1, DType::kF32);
  Report(Run(kReferenceKernels, context, expected, &expected_norm).ok(), what + ", reference");
  Report(Run(table, context, actual, &norm).ok(), what);
  Report(norm.buffer.Same(expected_norm.buffer), what + ": the bits of the norm");
  for (size_t i = 0; i < actual.size(); ++i) {
    const bool same = actual[i].p.buffer.Same(expected[i].p.buffer) &&
                      actual[i].m.buffer.Same(expected[i].m.buffer) &&
                      actual[i].v.buffer.Same(expected[i].v.buffer);
    Report(same, what + ": the bits of " + actual[i].p.view.Describe() + " with g " +
                     actual[i].g.view.Describe());
  }
}

}  // namespace lowrank::cpu
