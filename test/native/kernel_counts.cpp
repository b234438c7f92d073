// Runs one product of the CPU kernels some times, on one thread, for counts of its instructions:
//   kernel_counts <isa> <case> <repeats>          test/checks/instruction-counts.mjs has the cases
#include "test/native/kernel_operands.h"

namespace lowrank::cpu {
namespace {

int Main(int argc, char** argv) {
  if (argc != 4) {
    std::printf("usage: kernel_counts ISA generate|forward|backward|quantize REPEATS\n");
    return 2;
  }
  std::string reason;
  const KernelTable* table = SelectKernels(argv[1], &reason);
  if (table == nullptr) {
    std::printf("%s\n", reason.c_str());
    return 3;
  }
  const std::string name = argv[2];
  ThreadPool pool(1);
  const RunContext context = {&pool, nullptr};
  const int64_t M = name == "generate" ? 1 : 70, N = 256, K = 2048, r = 16;
  const Weight w = MakeWeight(*table, context, "nf4/64", N, K, DType::kF32);
  Dense x(M, K, DType::kF32), dy(M, N, DType::kF32), a(r, K, DType::kF32), b(N, r, DType::kF32),
      h(M, r, DType::kF32), y(M, N, DType::kF32), dx(M, K, DType::kF32), da(r, K, DType::kF32),
      db(N, r, DType::kF32), source(N, K, DType::kF32);
  for (Dense* operand : {&x, &dy, &a, &b, &h, &source}) operand->Fill();
  LoraForwardOp forward;
  forward.x = x.view;
  forward.w = w.view;
  forward.lora_a = a.view;
  forward.lora_b = b.view;
  forward.h = h.view;
  forward.y = y.view;
  forward.scaling = 1;
  LoraBackwardOp backward;
  backward.dy = dy.view;
  backward.x = x.view;
  backward.w = w.view;
  backward.lora_a = a.view;
  backward.lora_b = b.view;
  backward.h = h.view;
  backward.dx = dx.view;
  backward.d_lora_a = da.view;
  backward.d_lora_b = db.view;
  backward.scaling = 1;
  QuantizeOp quantize;
  quantize.w = source.view;
  quantize.out = w.view.quant;
  for (int i = 0; i < std::atoi(argv[3]); ++i) {
    const Status status = name == "backward"   ? table->lora_backward(backward, context)
                          : name == "quantize" ? table->quantize(quantize, context)
                                               : table->lora_forward(forward, context);
    if (!status.ok()) return 1;
  }
  return 0;
}

}  // namespace
}  // namespace lowrank::cpu

int main(int argc, char** argv) { return lowrank::cpu::Main(argc, argv); }
