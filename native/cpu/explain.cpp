/// The routes of a call on the CPU.
#include "native/cpu/explain.h"

#include "native/core/runtime/registry.h"
#include "native/cpu/route_table.h"

namespace lowrank {
namespace cpu {
namespace {

void Add(const char* op, int64_t first, int64_t count, const char* isa, Route route,
         Explanation* explanation) {
  if (count == 0) return;
  const RouteRow& row = RowOf(route);
  explanation->routes.push_back({op, first, count, isa, row.name,
                                 std::string("native/cpu/kernels/") + row.file, row.weight,
                                 row.rows, row.reason});
}

void Add(const char* op, int64_t rows, const ProductRoutes& routes, Explanation* explanation) {
  const int64_t last = routes.last == routes.route ? 0 : rows % routes.chunk_rows;
  Add(op, 0, rows - last, routes.isa, routes.route, explanation);
  Add(op, rows - last, last, routes.isa, routes.last, explanation);
}

}  // namespace

Status Explain(const KernelTable& kernels, int threads, const CallShape& shape,
               Explanation* explanation) {
  const OpsOfShape ops(shape);
  LOWRANK_RETURN_IF_ERROR(ops.Check());
  const RouteTable& routes = *kernels.routes;
  explanation->isa = kernels.isa;
  explanation->threads = threads;
  const ProductRoutes forward = routes.forward(ops.matmul);
  Add(MatmulOp::kName, shape.M, forward, explanation);
  if (ops.adapter()) Add(LoraForwardOp::kName, shape.M, forward, explanation);
  Add(MatmulInputGradOp::kName, shape.M, routes.input_grad(ops.input_grad, false, threads),
      explanation);
  if (ops.adapter()) {
    Add(LoraBackwardOp::kName, shape.M, routes.input_grad(ops.input_grad, true, threads),
        explanation);
  }
  return Status();
}

}  // namespace cpu

Status ExplainOnInstructionSet(const std::string& isa, const CallShape& shape,
                               Explanation* explanation) {
  std::string expected;
  bool known = false;
  const cpu::KernelTable* kernels = cpu::FindKernels(isa, &known, &expected);
  if (kernels == nullptr) {
    return Status(known ? Code::kUnsupported : Code::kValue, "explain: isa must be " + expected);
  }
  return cpu::Explain(*kernels, GetThreads(), shape, explanation);
}

}  // namespace lowrank
