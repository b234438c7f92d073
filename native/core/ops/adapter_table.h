/// The table of a batch of many adapters, from the adapter of each slot; and the op that such a
/// batch becomes.
#pragma once

#include <cstdint>
#include <vector>

#include "native/core/ops/grouped_ops.h"
#include "native/core/ops/ops.h"

namespace lowrank {

/// The arrays that a table points into. They must outlive the op.
struct AdapterTableMemory {
  std::vector<AdapterRows> adapters;  // with their factors, before Sort()
  std::vector<int32_t> rows;
  std::vector<int32_t> gates;  // empty with one slot per row
  int64_t slots = 1;

  /// Takes `slots` per row if m_count rows of them can be counted.
  Status SetSlots(const char* op, double given, int64_t m_count);
  /// Sorts m_count · slots slots by adapter, ascending within each. adapter_of[i] is the index of
  /// the adapter in slot i, or -1 for an empty slot.
  Status Sort(const char* op, const int32_t* adapter_of, int64_t count, int64_t m_count);
  AdapterTable Table() const;
};

/// One value per slot of each row, in whatever shape, as the row [1, M · slots].
TensorView SlotsAsRow(TensorView view);

/// The adapter that all m_count rows share, or null.
const AdapterRows* OnlyAdapter(const AdapterTable& table, int64_t m_count,
                               const TensorView& row_scale);
LoraForwardOp OneAdapter(const GroupedForwardOp& op, const AdapterRows& adapter);
LoraBackwardOp OneAdapter(const GroupedBackwardOp& op, const AdapterRows& adapter);
MatmulOp BaseOf(const GroupedForwardOp& op);

/// Calls submit(op) with what computes a batch fastest: a batch of one adapter is LoraForwardOp,
/// and one without adapters MatmulOp.
template <typename Submit>
Status SubmitGrouped(const GroupedForwardOp& op, const Submit& submit) {
  if (const AdapterRows* adapter = OnlyAdapter(op.table, op.x.rows, op.row_scale)) {
    return submit(OneAdapter(op, *adapter));
  }
  if (op.table.row_count == 0) return submit(BaseOf(op));
  return submit(op);
}
template <typename Submit>
Status SubmitGrouped(const GroupedBackwardOp& op, const Submit& submit) {
  if (const AdapterRows* adapter = OnlyAdapter(op.table, op.dy.rows, op.row_scale)) {
    return submit(OneAdapter(op, *adapter));
  }
  return submit(op);
}

}  // namespace lowrank
