#include "native/core/ops/adapter_table.h"

#include <cmath>
#include <string>

#include "native/core/ops/op_checks.h"

namespace lowrank {
namespace {

DropoutSpec DropoutOf(const AdapterRows& adapter, uint64_t seed, const TensorView& mask) {
  DropoutSpec dropout;
  dropout.p = adapter.dropout;
  dropout.seed = seed;
  dropout.mask = mask;
  return dropout;
}

}  // namespace

Status AdapterTableMemory::SetSlots(const char* op, double given, int64_t m_count) {
  const auto most = static_cast<double>(INT32_MAX / (m_count < 1 ? 1 : m_count));
  if (!(given >= 1 && given <= most && std::floor(given) == given)) {
    return Refuse(Code::kValue, op, "slots",
                  "an integer from 1 to " + std::to_string(static_cast<int64_t>(most)),
                  "another value");
  }
  slots = static_cast<int64_t>(given);
  return Status();
}

Status AdapterTableMemory::Sort(const char* op, const int32_t* adapter_of, int64_t count,
                                int64_t m_count) {
  const auto adapter_count = static_cast<int64_t>(adapters.size());
  const std::string expected =
      std::to_string(m_count * slots) + " indices from -1 to " + std::to_string(adapter_count - 1);
  if (count != m_count * slots) {
    return Refuse(Code::kValue, op, "rows", expected, std::to_string(count) + " values");
  }
  for (int64_t i = 0; i < count; ++i) {
    if (adapter_of[i] < -1 || adapter_of[i] >= adapter_count) {
      return Refuse(Code::kValue, op, "rows", expected, std::to_string(adapter_of[i]));
    }
    if (adapter_of[i] >= 0) ++adapters[static_cast<size_t>(adapter_of[i])].count;
  }
  int64_t first = 0;
  int64_t h_begin = 0;
  std::vector<int64_t> next;
  next.reserve(adapters.size());
  for (AdapterRows& adapter : adapters) {
    adapter.first = first;
    adapter.h_begin = h_begin;
    next.push_back(first);
    first += adapter.count;
    h_begin += adapter.count * adapter.r();
  }
  std::vector<int32_t>& sorted = slots == 1 ? rows : gates;
  sorted.resize(static_cast<size_t>(first));
  for (int64_t i = 0; i < count; ++i) {
    if (adapter_of[i] < 0) continue;
    sorted[static_cast<size_t>(next[static_cast<size_t>(adapter_of[i])]++)] =
        static_cast<int32_t>(i);
  }
  if (slots == 1) return Status();
  rows.reserve(sorted.size());
  for (const int32_t slot : sorted) rows.push_back(static_cast<int32_t>(slot / slots));
  return Status();
}

AdapterTable AdapterTableMemory::Table() const {
  AdapterTable table;
  table.adapters = adapters.data();
  table.count = static_cast<int64_t>(adapters.size());
  table.rows = rows.data();
  table.gates = slots == 1 ? table.rows : gates.data();
  table.row_count = static_cast<int64_t>(rows.size());
  table.slots = slots;
  for (const AdapterRows& adapter : adapters) table.h_elems += adapter.count * adapter.r();
  return table;
}

TensorView SlotsAsRow(TensorView view) {
  if (!view.present) return view;
  view.cols = view.elems();
  view.rows = 1;
  return view;
}

const AdapterRows* OnlyAdapter(const AdapterTable& table, int64_t m_count,
                               const TensorView& row_scale) {
  const bool only = table.count == 1 && table.adapters[0].count == m_count && !row_scale.present;
  return only ? table.adapters : nullptr;
}

LoraForwardOp OneAdapter(const GroupedForwardOp& op, const AdapterRows& adapter) {
  LoraForwardOp one;
  one.x = op.x;
  one.w = op.w;
  one.bias = op.bias;
  one.lora_a = adapter.lora_a;
  one.lora_b = adapter.lora_b;
  one.lora_bias = adapter.lora_bias;
  one.h = adapter.HOf(op.h);
  one.y = op.y;
  one.scaling = adapter.scaling;
  one.dropout = DropoutOf(adapter, op.seed, op.mask);
  one.compute = op.compute;
  return one;
}

LoraBackwardOp OneAdapter(const GroupedBackwardOp& op, const AdapterRows& adapter) {
  LoraBackwardOp one;
  one.dy = op.dy;
  one.x = op.x;
  one.w = op.w;
  one.lora_a = adapter.lora_a;
  one.lora_b = adapter.lora_b;
  one.h = adapter.HOf(op.h);
  one.dx = op.dx;
  one.d_lora_a = adapter.d_lora_a;
  one.d_lora_b = adapter.d_lora_b;
  one.d_bias = op.d_bias;
  one.d_lora_bias = adapter.d_lora_bias;
  one.accumulate_dx = op.accumulate_dx;
  one.accumulate_d_lora_a = adapter.accumulate_d_lora_a;
  one.accumulate_d_lora_b = adapter.accumulate_d_lora_b;
  one.accumulate_d_bias = op.accumulate_d_bias;
  one.accumulate_d_lora_bias = adapter.accumulate_d_lora_bias;
  one.scaling = adapter.scaling;
  one.dropout = DropoutOf(adapter, op.seed, op.mask);
  return one;
}

MatmulOp BaseOf(const GroupedForwardOp& op) {
  MatmulOp base;
  base.x = op.x;
  base.w = op.w;
  base.bias = op.bias;
  base.y = op.y;
  base.compute = op.compute;
  return base;
}

}  // namespace lowrank
