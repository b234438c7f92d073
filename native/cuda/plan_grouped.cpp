/// Plans of a batch whose rows have different adapters: the plans of loraForward and loraBackward,
/// for each run of neighbouring rows of one adapter.
#include <vector>

#include "native/cuda/plan.h"

namespace lowrank::cuda {
namespace {

/// Neighbouring rows of one adapter, or (null) of none.
struct RowRun {
  int64_t begin = 0;
  int64_t count = 0;
  const AdapterRows* adapter = nullptr;
  int64_t place = 0;  // of the first, among the adapter's rows
};

std::vector<RowRun> RunsOf(const AdapterTable& table, int64_t m_count) {
  std::vector<RowRun> rows(static_cast<size_t>(m_count));
  for (int64_t m = 0; m < m_count; ++m) rows[static_cast<size_t>(m)] = {m, 1, nullptr, 0};
  for (int64_t e = 0; e < table.count; ++e) {
    const AdapterRows& adapter = table.adapters[e];
    for (int64_t i = 0; i < adapter.count; ++i) {
      RowRun& row = rows[static_cast<size_t>(table.rows[adapter.first + i])];
      row.adapter = &adapter;
      row.place = i;
    }
  }
  std::vector<RowRun> runs;
  for (const RowRun& row : rows) {
    if (runs.empty() || runs.back().adapter != row.adapter) {
      runs.push_back(row);
    } else {
      ++runs.back().count;
    }
  }
  return runs;
}

TensorView RowsOf(TensorView view, const RowRun& run) {
  if (!view.present) return view;
  view.data = static_cast<char*>(view.data) +
              static_cast<size_t>(run.begin * view.cols) * DTypeBytes(view.dtype);
  view.rows = run.count;
  return view;
}

TensorView PartOf(const TensorView& h, const RowRun& run) {
  if (!h.present) return h;
  const int64_t r = run.adapter->r();
  float* data = static_cast<float*>(h.data) + run.adapter->h_begin + run.place * r;
  return {data, DType::kF32, run.count, r, true};
}

DropoutSpec DropoutOf(const RowRun& run, const TensorView& mask) {
  DropoutSpec dropout;
  dropout.p = run.adapter->dropout;
  dropout.mask = RowsOf(mask, run);
  return dropout;
}

Status CheckTable(const char* op, const AdapterTable& table, const TensorView& row_scale,
                  const TensorView& mask) {
  if (row_scale.present) {
    return Refuse(Code::kUnsupported, op, "rowScale", "absent on a CUDA device", "a tensor");
  }
  for (int64_t e = 0; e < table.count; ++e) {
    if (table.adapters[e].dropout > 0 && !mask.present) {
      return Refuse(Code::kUnsupported, op, "dropout",
                    "by a mask on a CUDA device where a batch has several adapters", "by a seed");
    }
  }
  return Status();
}

}  // namespace

Status MakePlan(const GroupedForwardOp& op, const DeviceLimits& device, Workspace* workspace,
                Plan* plan) {
  LOWRANK_RETURN_IF_ERROR(CheckTable(op.kName, op.table, op.row_scale, op.mask));
  for (const RowRun& run : RunsOf(op.table, op.x.rows)) {
    if (run.adapter == nullptr) {
      MatmulOp base;
      base.x = RowsOf(op.x, run);
      base.w = op.w;
      base.bias = op.bias;
      base.y = RowsOf(op.y, run);
      LOWRANK_RETURN_IF_ERROR(MakePlan(base, device, workspace, plan));
      continue;
    }
    LoraForwardOp one;
    one.x = RowsOf(op.x, run);
    one.w = op.w;
    one.bias = op.bias;
    one.lora_a = run.adapter->lora_a;
    one.lora_b = run.adapter->lora_b;
    one.lora_bias = run.adapter->lora_bias;
    one.h = PartOf(op.h, run);
    one.y = RowsOf(op.y, run);
    one.scaling = run.adapter->scaling;
    one.dropout = DropoutOf(run, op.mask);
    LOWRANK_RETURN_IF_ERROR(MakePlan(one, device, workspace, plan));
  }
  return Status();
}

Status MakePlan(const GroupedBackwardOp& op, const DeviceLimits& device, Workspace* workspace,
                Plan* plan) {
  LOWRANK_RETURN_IF_ERROR(CheckTable(op.kName, op.table, op.row_scale, op.mask));
  if (op.d_bias.present) {
    LoraExpandBackwardOp sums;
    sums.dy = op.dy;
    sums.d_bias = op.d_bias;
    sums.accumulate_d_bias = op.accumulate_d_bias;
    LOWRANK_RETURN_IF_ERROR(MakePlan(sums, device, workspace, plan));
  }
  for (const RowRun& run : RunsOf(op.table, op.dy.rows)) {
    if (run.adapter == nullptr) {
      if (!op.dx.present) continue;
      LoraShrinkBackwardOp base;
      base.dy = RowsOf(op.dy, run);
      base.w = op.w;
      base.dx = RowsOf(op.dx, run);
      base.accumulate_dx = op.accumulate_dx;
      LOWRANK_RETURN_IF_ERROR(MakePlan(base, device, workspace, plan));
      continue;
    }
    const AdapterRows& adapter = *run.adapter;
    const bool later = run.place > 0;  // adds to what the adapter's earlier rows gave
    for (const TensorView* out : {&adapter.d_lora_a, &adapter.d_lora_b, &adapter.d_lora_bias}) {
      if (!later || !out->present || out->dtype == DType::kF32) continue;
      return Refuse(Code::kUnsupported, op.kName, "rows",
                    "together for an adapter of 16-bit factors on a CUDA device", "apart");
    }
    LoraBackwardOp one;
    one.dy = RowsOf(op.dy, run);
    one.x = RowsOf(op.x, run);
    one.w = op.w;
    one.lora_a = adapter.lora_a;
    one.lora_b = adapter.lora_b;
    one.h = PartOf(op.h, run);
    one.dx = RowsOf(op.dx, run);
    one.d_lora_a = adapter.d_lora_a;
    one.d_lora_b = adapter.d_lora_b;
    one.d_lora_bias = adapter.d_lora_bias;
    one.accumulate_dx = op.accumulate_dx;
    one.accumulate_d_lora_a = adapter.accumulate_d_lora_a || later;
    one.accumulate_d_lora_b = adapter.accumulate_d_lora_b || later;
    one.accumulate_d_lora_bias = adapter.accumulate_d_lora_bias || later;
    one.scaling = adapter.scaling;
    one.dropout = DropoutOf(run, op.mask);
    LOWRANK_RETURN_IF_ERROR(MakePlan(one, device, workspace, plan));
  }
  return Status();
}

}  // namespace lowrank::cuda
