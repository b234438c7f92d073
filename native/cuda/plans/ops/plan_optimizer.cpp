/// Plans of cuda/elementwise/optimizer_sm80.cu: one launch for each kOptimizerMostParts parameters
/// of a step, or kNormMostParts gradients of a norm. Their lists are in the parameters of the
/// launch, so a stream that is being captured accepts them.
#include <cstddef>
#include <utility>

#include "native/cuda/plans/plan.h"
#include "native/cuda/plans/plan_streaming.h"
#include "native/host_device/params/optimizer.h"

namespace lowrank::cuda {
namespace {

constexpr const char* kKernels[] = {
#define LOWRANK_OPTIMIZER_KERNEL(id, name) "optimizer_" name "_kernel",
    LOWRANK_FOR_EACH_OPTIMIZER(LOWRANK_OPTIMIZER_KERNEL)
#undef LOWRANK_OPTIMIZER_KERNEL
};

constexpr uint32_t kSharedBytes[] = {
#define LOWRANK_OPTIMIZER_SHARED(id, name) \
  sizeof(gpu::OptimizerShared<OptimizerRule<Optimizer::id>>),
    LOWRANK_FOR_EACH_OPTIMIZER(LOWRANK_OPTIMIZER_SHARED)
#undef LOWRANK_OPTIMIZER_SHARED
};

constexpr int64_t kOptimizerBlock = gpu::kOptimizerBlock;

int64_t ElemsOf(const GradientPart& part) { return part.g.elems(); }
int64_t ElemsOf(const ParameterPart& part) { return part.p.elems(); }

LaunchStep Step(const char* kernel) {
  LaunchStep step;
  step.kernel = kernel;
  step.threads = gpu::kOptimizerThreads;
  return step;
}

gpu::OptimizerPart PartOf(const ParameterPart& from) {
  gpu::OptimizerPart part{};
  part.p = from.p.data;
  part.g = from.g.data;
  bool vector = IsAligned(from.p.data, 16) && IsAligned(from.g.data, 16);
  for (int s = 0; s < kMostStates; ++s) {
    part.states[s] = static_cast<float*>(from.states[s].data);
    vector = vector && IsAligned(from.states[s].data, 16);
  }
  part.elems = from.p.elems();
  part.lr_scale = from.lr_scale;
  part.weight_decay = from.weight_decay;
  part.p_element = static_cast<int8_t>(from.p.dtype);
  part.g_element = static_cast<int8_t>(from.g.dtype);
  part.vector = vector ? 1 : 0;
  return part;
}

/// Launches over the parts that have elements, at most `most` each.
///
/// @param params of a launch without parts
/// @param add    (part, first block, &params)
/// @param begin  (blocks of earlier launches, &params), before each launch
template <typename Params, typename Part, typename Add, typename Begin>
Status PlanParts(const char* op, const LaunchStep& empty, const Params& shared, const Part* parts,
                 int64_t count, int64_t most, const Add& add, const Begin& begin, Plan* plan) {
  int64_t earlier = 0;
  for (int64_t i = 0; i < count;) {
    Params params = shared;
    int64_t blocks = 0;
    for (; i < count && params.count < most; ++i) {
      const int64_t own = CeilDiv(ElemsOf(parts[i]), kOptimizerBlock);
      if (own == 0) continue;
      add(parts[i], static_cast<int32_t>(blocks), &params);
      blocks += own;
    }
    if (blocks == 0) break;
    begin(earlier, &params);
    LaunchStep step = empty;
    LOWRANK_RETURN_IF_ERROR(SetGrid(op, blocks, 1, &step));
    step.SetParams(params);
    plan->steps.push_back(std::move(step));
    earlier += blocks;
  }
  return Status();
}

}  // namespace

Status MakePlan(const GlobalNormOp& op, const DeviceLimits&, Workspace* workspace, Plan* plan) {
  gpu::NormTotalParams total;
  for (int64_t i = 0; i < op.count; ++i) {
    total.count += CeilDiv(op.parts[i].g.elems(), kOptimizerBlock);
  }
  double* const planes = workspace->Take<double>(total.count);
  total.planes = planes;
  total.norm = static_cast<float*>(op.norm.data);
  LaunchStep squares = Step("norm_squares_kernel");
  squares.shared_bytes = sizeof(gpu::NormShared);
  const auto add = [](const GradientPart& part, int32_t first_block, gpu::NormSquaresParams* to) {
    gpu::NormPart& own = to->parts[to->count++];
    own.g = part.g.data;
    own.elems = part.g.elems();
    own.first_block = first_block;
    own.element = static_cast<int16_t>(part.g.dtype);
    own.vector = IsAligned(part.g.data, 16) ? 1 : 0;
  };
  const auto begin = [planes](int64_t earlier, gpu::NormSquaresParams* to) {
    to->planes = planes == nullptr ? nullptr : planes + earlier;
  };
  LOWRANK_RETURN_IF_ERROR(PlanParts(op.kName, squares, gpu::NormSquaresParams{}, op.parts, op.count,
                                    gpu::kNormMostParts, add, begin, plan));
  LaunchStep last = Step("norm_total_kernel");
  last.shared_bytes = sizeof(gpu::NormShared);
  last.SetParams(total);
  plan->steps.push_back(std::move(last));
  return Status();
}

Status MakePlan(const OptimizerStepOp& op, const DeviceLimits&, Workspace*, Plan* plan) {
  const auto index = static_cast<size_t>(op.kind);
  gpu::OptimizerStepParams shared{};
  shared.settings = op.settings;
  shared.now.lr_at = static_cast<const float*>(op.lr_at.data);
  shared.now.steps_done = static_cast<float*>(op.steps_done.data);
  shared.now.norm = static_cast<const float*>(op.norm.data);
  shared.now.lr = op.lr;
  shared.now.step = static_cast<float>(op.step);
  LaunchStep step = Step(kKernels[index]);
  step.shared_bytes = kSharedBytes[index];
  const auto add = [](const ParameterPart& part, int32_t first_block,
                      gpu::OptimizerStepParams* to) {
    gpu::OptimizerPart& own = to->parts[to->count++];
    own = PartOf(part);
    own.first_block = first_block;
  };
  const auto begin = [](int64_t, gpu::OptimizerStepParams*) {};
  LOWRANK_RETURN_IF_ERROR(PlanParts(op.kName, step, shared, op.parts, op.count,
                                    gpu::kOptimizerMostParts, add, begin, plan));
  if (!op.steps_done.present) return Status();
  LaunchStep advance;
  advance.kernel = "optimizer_advance_kernel";
  advance.threads = 32;
  advance.SetParams(shared.now);
  plan->steps.push_back(std::move(advance));
  return Status();
}

}  // namespace lowrank::cuda
