/// Rows of a table by their ids (EmbeddingOp).
///
/// Operands   ids [M] · table [V, D] dense or packed · y [M, D]
/// Numerics   decoded in f32, times scale, one rounding: the same bits on every instruction set
/// Tasks      rows of y
#pragma once

#include "native/cpu/kernels/model/norm.h"

namespace lowrank::cpu::LOWRANK_ISA {

LOWRANK_OP Outcome Embedding(const EmbeddingOp& op, const RunContext& context) {
  Run run(context);
  const RowSource table = WeightRows(op.table, DType::kF32);
  const int64_t D = op.y.cols;
  ForEachRow(run, op.y.rows, D, [&](int64_t m) {
    const int64_t id = op.ids.data[m];
    alignas(64) float value[kStripElems];
    for (int64_t n = 0; n < D; n += kStripElems) {
      const int64_t count = Min(kStripElems, D - n);
      if (id < 0) {
        std::memset(value, 0, sizeof(value));
      } else {
        RowAsFloat(table, id, n, count, value);
        for (int64_t i = 0; i < count; ++i) value[i] *= op.scale;
      }
      NarrowRun(op.y.data, op.y.dtype, m * D + n, count, value);
    }
  });
  return run.Result();
}

}  // namespace lowrank::cpu::LOWRANK_ISA
