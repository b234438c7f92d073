/// Ops over a batch whose rows have different adapters.
#include <cstdint>
#include <vector>

#include "native/core/ops/op_checks.h"

namespace lowrank {
namespace {

Status CheckRows(const char* op, const AdapterTable& table, int64_t m_count) {
  if (table.slots < 1 || table.slots > INT32_MAX || m_count > INT32_MAX / table.slots) {
    return Refuse(Code::kValue, op, "rows", "up to 2^31 - 1 slots",
                  std::to_string(m_count) + " times " + std::to_string(table.slots));
  }
  std::vector<bool> taken(static_cast<size_t>(m_count * table.slots), false);
  int64_t first = 0;
  int64_t h_begin = 0;
  for (int64_t e = 0; e < table.count; ++e) {
    const AdapterRows& adapter = table.adapters[e];
    if (adapter.first != first || adapter.h_begin != h_begin || adapter.count < 0 ||
        first + adapter.count > table.row_count) {
      return Refuse(Code::kValue, op, "rows", "grouped by adapter", "another order");
    }
    for (int64_t i = 0; i < adapter.count; ++i) {
      const int64_t row = table.rows[first + i];
      if (row < 0 || row >= m_count) {
        return Refuse(Code::kValue, op, "rows", "from 0 to " + std::to_string(m_count - 1),
                      std::to_string(row));
      }
      const int64_t gate = table.gates[first + i];
      if (gate / table.slots != row || gate < 0) {
        return Refuse(Code::kValue, op, "rows", "a slot of row " + std::to_string(row),
                      "slot " + std::to_string(gate));
      }
      if (taken[static_cast<size_t>(gate)] || (i > 0 && table.rows[first + i - 1] >= row)) {
        return Refuse(Code::kValue, op, "rows",
                      "ascending within an adapter, with each slot in one adapter",
                      "row " + std::to_string(row) + " again");
      }
      taken[static_cast<size_t>(gate)] = true;
    }
    first += adapter.count;
    h_begin += adapter.count * adapter.r();
  }
  if (first != table.row_count || h_begin != table.h_elems) {
    return Refuse(Code::kValue, op, "rows", "each assigned to an adapter", "rows without one");
  }
  return Status();
}

Status CheckAdapters(const char* op, const AdapterTable& table, int64_t n, int64_t k,
                     const char* beside, DType dtype) {
  for (int64_t e = 0; e < table.count; ++e) {
    const AdapterRows& adapter = table.adapters[e];
    const int64_t r = adapter.r();
    LOWRANK_RETURN_IF_ERROR(CheckMatrix(op, "loraA", adapter.lora_a, r, k));
    LOWRANK_RETURN_IF_ERROR(CheckMatrix(op, "loraB", adapter.lora_b, n, r));
    LOWRANK_RETURN_IF_ERROR(CheckOptional(op, "loraBias", adapter.lora_bias, 1, n));
    LOWRANK_RETURN_IF_ERROR(CheckCompatible(op, "loraA", adapter.lora_a.dtype, beside, dtype));
    LOWRANK_RETURN_IF_ERROR(CheckCompatible(op, "loraB", adapter.lora_b.dtype, beside, dtype));
    LOWRANK_RETURN_IF_ERROR(CheckFactor(op, "scaling", adapter.scaling));
    DropoutSpec dropout;
    dropout.p = adapter.dropout;
    LOWRANK_RETURN_IF_ERROR(CheckDropout(op, dropout, 0, 0));
  }
  return Status();
}

/// The operands that both directions share.
void AddShared(const AdapterTable& table, const TensorView& row_scale, const TensorView& mask,
               Ranges* ranges) {
  for (int64_t e = 0; e < table.count; ++e) {
    const AdapterRows& adapter = table.adapters[e];
    ranges->In("loraA", adapter.lora_a);
    ranges->In("loraB", adapter.lora_b);
    ranges->In("loraBias", adapter.lora_bias);
  }
  ranges->In("rowScale", row_scale);
  ranges->In("dropoutMask", mask);
}

std::string DescribeTable(const AdapterTable& table) {
  const std::string slots = table.slots == 1 ? "" : " slots " + std::to_string(table.slots);
  return " adapters " + std::to_string(table.count) + " rows " + std::to_string(table.row_count) +
         slots;
}

}  // namespace

Status GroupedForwardOp::Check() const {
  const int64_t m = x.rows;
  const int64_t n = w.rows();
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "x", x, m, x.cols));
  LOWRANK_RETURN_IF_ERROR(CheckWeight(kName, w, x.dtype, "x"));
  LOWRANK_RETURN_IF_ERROR(CheckCompute(kName, compute, w));
  LOWRANK_RETURN_IF_ERROR(CheckInner(kName, "x", "K", w.cols(), x.cols, Shape(m, x.cols)));
  LOWRANK_RETURN_IF_ERROR(CheckOptional(kName, "bias", bias, 1, n));
  LOWRANK_RETURN_IF_ERROR(CheckRows(kName, table, m));
  LOWRANK_RETURN_IF_ERROR(CheckAdapters(kName, table, n, x.cols, "x", x.dtype));
  LOWRANK_RETURN_IF_ERROR(CheckOptional(kName, "rowScale", row_scale, 1, m * table.slots));
  LOWRANK_RETURN_IF_ERROR(CheckOptional(kName, "dropoutMask", mask, m, x.cols));
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "h", h, 1, table.h_elems));
  LOWRANK_RETURN_IF_ERROR(CheckDType(kName, "h", h, DType::kF32));
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "y", y, m, n));
  LOWRANK_RETURN_IF_ERROR(CheckDType(kName, "y", y, x.dtype));
  Ranges ranges;
  AddShared(table, row_scale, mask, &ranges);
  ranges.In("x", x);
  ranges.In("w", w);
  ranges.In("bias", bias);
  ranges.Out("h", h);
  ranges.Out("y", y);
  return ranges.CheckApart(kName);
}
std::string GroupedForwardOp::Describe() const {
  return std::string(kName) + " x " + x.Describe() + " w " + w.Describe() + DescribeTable(table) +
         ComputeSuffix(compute);
}

Status GroupedBackwardOp::Check() const {
  const int64_t m = dy.rows;
  const int64_t n = dy.cols;
  const int64_t k = in_features;
  LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "dy", dy, m, n));
  LOWRANK_RETURN_IF_ERROR(CheckRows(kName, table, m));
  LOWRANK_RETURN_IF_ERROR(CheckAdapters(kName, table, n, k, "dy", dy.dtype));
  LOWRANK_RETURN_IF_ERROR(CheckOptional(kName, "rowScale", row_scale, 1, m * table.slots));
  LOWRANK_RETURN_IF_ERROR(CheckOptional(kName, "dropoutMask", mask, m, k));
  LOWRANK_RETURN_IF_ERROR(CheckOptional(kName, "dBias", d_bias, 1, n));
  LOWRANK_RETURN_IF_ERROR(CheckOptional(kName, "dRowScale", d_row_scale, 1, m * table.slots));
  if (d_row_scale.present && !row_scale.present) {
    return Refuse(Code::kValue, kName, "dRowScale", "given only with rowScale", "dRowScale alone");
  }
  Ranges ranges;
  AddShared(table, row_scale, mask, &ranges);
  bool needs_x = false;
  bool needs_h = d_row_scale.present;
  for (int64_t e = 0; e < table.count; ++e) {
    const AdapterRows& adapter = table.adapters[e];
    const int64_t r = adapter.r();
    LOWRANK_RETURN_IF_ERROR(CheckOptional(kName, "dLoraA", adapter.d_lora_a, r, k));
    LOWRANK_RETURN_IF_ERROR(CheckOptional(kName, "dLoraB", adapter.d_lora_b, n, r));
    LOWRANK_RETURN_IF_ERROR(CheckOptional(kName, "dLoraBias", adapter.d_lora_bias, 1, n));
    if (adapter.d_lora_bias.present && !adapter.d_lora_b.present) {
      return Refuse(Code::kValue, kName, "dLoraBias", "given only with dLoraB", "dLoraBias alone");
    }
    needs_x = needs_x || adapter.d_lora_a.present;
    needs_h = needs_h || adapter.d_lora_b.present;
    ranges.Out("dLoraA", adapter.d_lora_a);
    ranges.Out("dLoraB", adapter.d_lora_b);
    ranges.Out("dLoraBias", adapter.d_lora_bias);
  }
  if (needs_x) {
    LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "x", x, m, k));
    LOWRANK_RETURN_IF_ERROR(CheckDType(kName, "x", x, dy.dtype));
  }
  if (needs_h) {
    LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "h", h, 1, table.h_elems));
    LOWRANK_RETURN_IF_ERROR(CheckDType(kName, "h", h, DType::kF32));
  }
  if (dx.present) {
    LOWRANK_RETURN_IF_ERROR(CheckWeight(kName, w, dy.dtype, "dy"));
    LOWRANK_RETURN_IF_ERROR(CheckInner(kName, "dy", "N", w.rows(), n, Shape(m, n)));
    LOWRANK_RETURN_IF_ERROR(CheckInner(kName, "loraA", "K", w.cols(), k, Shape(m, k)));
    LOWRANK_RETURN_IF_ERROR(CheckMatrix(kName, "dx", dx, m, k));
    LOWRANK_RETURN_IF_ERROR(CheckDType(kName, "dx", dx, dy.dtype));
  }
  ranges.In("dy", dy);
  ranges.In("x", x);
  ranges.In("w", w);
  ranges.In("h", h);
  ranges.Out("dx", dx);
  ranges.Out("dBias", d_bias);
  ranges.Out("dRowScale", d_row_scale);
  return ranges.CheckApart(kName);
}
std::string GroupedBackwardOp::Describe() const {
  return std::string(kName) + " dy " + dy.Describe() + " K " + std::to_string(in_features) +
         DescribeTable(table);
}

}  // namespace lowrank
