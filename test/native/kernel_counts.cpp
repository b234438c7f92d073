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
  const Shape s = {name == "generate" ? 1 : 70, 256, 2048, 16};
  const Weight w = MakeWeight(*table, context, "nf4/64", s.N, s.K, DType::kF32);
  LoraLayer layer(s, DType::kF32, w.view);
  Dense source(s.N, s.K, DType::kF32);
  source.Fill();
  QuantizeOp quantize;
  quantize.w = source.view;
  quantize.out = w.view.quant;
  for (int i = 0; i < std::atoi(argv[3]); ++i) {
    const Status status = name == "backward"   ? table->lora_backward(layer.backward, context)
                          : name == "quantize" ? table->quantize(quantize, context)
                                               : table->lora_forward(layer.forward, context);
    if (!status.ok()) return 1;
  }
  return 0;
}

}  // namespace
}  // namespace lowrank::cpu

int main(int argc, char** argv) { return lowrank::cpu::Main(argc, argv); }
