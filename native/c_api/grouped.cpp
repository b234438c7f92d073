/// A batch whose rows have different adapters.
#include "native/c_api/op_fields.h"
#include "native/c_api/operands.h"
#include "native/core/ops/adapter_table.h"

using namespace lowrank;
using namespace lowrank::c_api;

namespace {

constexpr int64_t kMostAdapters = int64_t{1} << 20;

Result ReadAdapter(const lowrank_batch_adapter* given, bool backward, Operands* operands,
                   AdapterRows* adapter) {
  lowrank_batch_adapter own;
  const Result read = ReadArgs(operands->op(), given, &own);
  if (read.code != LOWRANK_OK) return read;
  constexpr uint32_t kGradients =
      LOWRANK_ADD_TO_D_LORA_A | LOWRANK_ADD_TO_D_LORA_B | LOWRANK_ADD_TO_D_LORA_BIAS;
  const uint32_t known = backward ? kGradients : 0;
  if ((own.flags & ~known) != 0) {
    return Refuse(Code::kValue, operands->op(), "adapter.flags",
                  "of the bits " + std::to_string(known), std::to_string(own.flags));
  }
  adapter->lora_a = operands->In(own.lora_a, "loraA");
  adapter->lora_b = operands->In(own.lora_b, "loraB");
  adapter->lora_bias = operands->OptionalRow(own.lora_bias, "loraBias");
  adapter->scaling = own.scaling;
  adapter->dropout = own.dropout;
  if (!backward) return Status();
  adapter->d_lora_a = operands->OptionalIn(own.d_lora_a, "dLoraA");
  adapter->d_lora_b = operands->OptionalIn(own.d_lora_b, "dLoraB");
  adapter->d_lora_bias = operands->OptionalRow(own.d_lora_bias, "dLoraBias");
  adapter->accumulate_d_lora_a = (own.flags & LOWRANK_ADD_TO_D_LORA_A) != 0;
  adapter->accumulate_d_lora_b = (own.flags & LOWRANK_ADD_TO_D_LORA_B) != 0;
  adapter->accumulate_d_lora_bias = (own.flags & LOWRANK_ADD_TO_D_LORA_BIAS) != 0;
  return Status();
}

/// The adapters and rows of either pass. `table` must outlive the op.
template <typename Args>
Result ReadTable(const Args& given, int64_t m_count, bool backward, Operands* operands,
                 AdapterTableMemory* table) {
  const char* op = operands->op();
  if (given.adapter_count < 0 || given.adapter_count > kMostAdapters) {
    return Refuse(Code::kValue, op, "adapterCount", "0 to " + std::to_string(kMostAdapters),
                  std::to_string(given.adapter_count));
  }
  if (given.adapter_count > 0 && given.adapters == nullptr) {
    return RefuseNull(op, "adapters", "pointers");
  }
  table->adapters.resize(static_cast<size_t>(given.adapter_count));
  for (size_t e = 0; e < table->adapters.size(); ++e) {
    const Result read = ReadAdapter(given.adapters[e], backward, operands, &table->adapters[e]);
    if (read.code != LOWRANK_OK) return read;
  }
  const IndexView rows = operands->HostIndices(given.rows, "rows", given.adapter_count, true);
  LOWRANK_RETURN_IF_ERROR(operands->status());
  // [M] has one slot a row, [M, slots] several. Of no rows nothing can be counted.
  const int64_t slots = given.rows->ndim < 2 || m_count == 0 ? 1 : rows.count / m_count;
  LOWRANK_RETURN_IF_ERROR(table->SetSlots(op, static_cast<double>(slots), m_count));
  return table->Sort(op, rows.data, rows.count, m_count);
}

/// Checked whole here: of a batch that becomes another op, that one sees only a part.
template <typename Op>
Status RunGrouped(const Op& op, const Operands& operands) {
  LOWRANK_RETURN_IF_ERROR(operands.status());
  LOWRANK_RETURN_IF_ERROR(op.Check());
  return SubmitGrouped(op, [&](const auto& one) { return operands.Run(one); });
}

}  // namespace

int32_t lowrank_grouped_forward(const lowrank_grouped_forward_args* args) {
  constexpr const char* kOp = GroupedForwardOp::kName;
  return Call(kOp, args, [&](const lowrank_grouped_forward_args& given) -> Result {
    Operands operands(kOp, given.device, given.flags, LOWRANK_COMPUTE_INT8, given.stream);
    GroupedForwardOp op;
    op.x = operands.In(given.x, "x");
    op.w = operands.Weight(given.w, "w");
    op.bias = operands.OptionalRow(given.bias, "bias");
    AdapterTableMemory table;
    const Result read = ReadTable(given, op.x.rows, false, &operands, &table);
    if (read.code != LOWRANK_OK) return read;
    op.table = table.Table();
    op.row_scale = SlotsAsRow(operands.OptionalIn(given.row_scale, "rowScale"));
    op.seed = given.seed;
    op.mask = operands.OptionalIn(given.dropout_mask, "dropoutMask");
    op.h = operands.Row(given.h, "h");
    op.y = operands.In(given.y, "y");
    op.compute = ComputeOf(operands);
    return RunGrouped(op, operands);
  });
}

int32_t lowrank_grouped_backward(const lowrank_grouped_backward_args* args) {
  constexpr const char* kOp = GroupedBackwardOp::kName;
  constexpr uint32_t kFlags =
      LOWRANK_ADD_TO_DX | LOWRANK_ADD_TO_D_BIAS | LOWRANK_ADD_TO_D_ROW_SCALE;
  return Call(kOp, args, [&](const lowrank_grouped_backward_args& given) -> Result {
    Operands operands(kOp, given.device, given.flags, kFlags, given.stream);
    GroupedBackwardOp op;
    op.dy = operands.In(given.dy, "dy");
    op.x = operands.OptionalIn(given.x, "x");
    op.w = operands.OptionalWeight(given.w, "w");
    op.h = operands.OptionalRow(given.h, "h");
    AdapterTableMemory table;
    const Result read = ReadTable(given, op.dy.rows, true, &operands, &table);
    if (read.code != LOWRANK_OK) return read;
    op.table = table.Table();
    op.row_scale = SlotsAsRow(operands.OptionalIn(given.row_scale, "rowScale"));
    op.seed = given.seed;
    op.mask = operands.OptionalIn(given.dropout_mask, "dropoutMask");
    op.in_features = given.in_features;
    op.dx = operands.OptionalIn(given.dx, "dx");
    op.d_bias = operands.OptionalRow(given.d_bias, "dBias");
    op.d_row_scale = SlotsAsRow(operands.OptionalIn(given.d_row_scale, "dRowScale"));
    op.accumulate_dx = operands.Flag(LOWRANK_ADD_TO_DX);
    op.accumulate_d_bias = operands.Flag(LOWRANK_ADD_TO_D_BIAS);
    op.accumulate_d_row_scale = operands.Flag(LOWRANK_ADD_TO_D_ROW_SCALE);
    return RunGrouped(op, operands);
  });
}
