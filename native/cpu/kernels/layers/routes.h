/// The routes that the chunks of an op take, without running it: for `lowrank info --explain`, and
/// for the check of docs/cpu-design.md (test/native/kernel_routes_check.cpp).
///
/// They come from what the ops themselves ask: PlanForward(), PlanInputGrad() and the rows of a
/// chunk. Of the operands only shapes, dtypes and the codebook are read.
#pragma once

#include "native/cpu/kernels/layers/lora_backward.h"
#include "native/cpu/kernels/layers/lora_forward.h"

namespace lowrank::cpu::LOWRANK_ISA {

/// `rows` of them, at least one, in chunks of `step`; plan(rows of a chunk) gives a route.
template <typename Plan>
LOWRANK_INLINE ProductRoutes RoutesOfChunks(int64_t rows, int64_t step, const Plan& plan) {
  ProductRoutes routes;
  routes.isa = LOWRANK_ISA_NAME;
  routes.chunk_rows = Min(step, rows);
  routes.route = plan(routes.chunk_rows);
  const int64_t last = rows % routes.chunk_rows;
  routes.last = last == 0 ? routes.route : plan(last);
  return routes;
}

/// Of matmul, and of the base product of loraForward, which has the same.
LOWRANK_OP ProductRoutes ForwardRoutes(const MatmulOp& op) {
  if (!OwnsForward(op)) return Base().routes.forward(op);
  ProductRoutes routes;
  WithComputePolicy(op.compute, op.x.dtype, op.w, [&](auto policy) {
    using Policy = decltype(policy);
    const RowSource w = WeightRows(op.w, op.x.dtype);
    const SumOrder order = OrderOf<Policy>(w);
    routes = RoutesOfChunks(op.x.rows, ChunkRows<Policy>(op.x.rows, op.x.cols), [&](int64_t rows) {
      return PlanForward<Policy>(op.x.rows, rows, w, order, Packings());
    });
  });
  return routes;
}

/// Of matmulInputGrad, and of dx of loraBackward, whose chunks may have other rows where d_lora_b
/// is taken from them too.
LOWRANK_OP ProductRoutes InputGradRoutes(const MatmulInputGradOp& op, bool with_d_lora_b,
                                         int threads) {
  if (kHasBase && !OwnsBackward(op)) return Base().routes.input_grad(op, with_d_lora_b, threads);
  ProductRoutes routes;
  WithPolicy(op.dy.dtype, op.w, [&](auto policy) {
    using Policy = decltype(policy);
    const RowSource w = WeightRows(op.w, op.dy.dtype);
    int64_t step = ChunkRows<Policy>(op.dy.rows, op.dy.cols);
    if (with_d_lora_b && !Policy::kTiles) {
      const int64_t rows = FactorStep(op.dy, step);
      if (rows != 0) step = rows;
    }
    routes = RoutesOfChunks(op.dy.rows, step,
                            [&](int64_t rows) { return PlanInputGrad<Policy>(rows, &w, threads); });
  });
  return routes;
}

}  // namespace lowrank::cpu::LOWRANK_ISA
