// The matrix unit's kernels with its products in vectors: all that is checked of an instruction
// set, and the same bits as the unit itself where there is one.
#include "native/cpu/kernels/isa/isa_table.h"
#include "test/native/kernel_operands.h"

namespace lowrank::cpu {

#if defined(__x86_64__)
namespace avx512_tiles_emulated {
extern const IsaKernels kKernels;
extern const ModelKernels kModelKernels;
}  // namespace avx512_tiles_emulated

const KernelTable* EmulatedTiles() {
  std::string reason;
  if (SelectKernels("avx512-bf16", &reason) == nullptr) return nullptr;
  return Table<avx512_tiles_emulated::kKernels, avx512_tiles_emulated::kModelKernels>(
      "avx512-amx, emulated");
}
#else
const KernelTable* EmulatedTiles() { return nullptr; }
#endif

namespace {

/// Makes the exact sums of x · wᵀ zero: what is left of them is the rounding of each step, which no
/// other order or grouping of the sum has.
void Cancel(Dense* x, Dense* w) {
  const int64_t half = x->view.cols / 2;
  for (Dense* operand : {x, w}) {
    const double sign = operand == x ? -1 : 1;
    for (int64_t row = 0; row < operand->view.rows; ++row) {
      for (int64_t k = 0; k < half; ++k) {
        const int64_t to = row * operand->view.cols + half + (k * 7 + 3) % half;
        StoreElement(operand->view.data, operand->view.dtype, to, sign * operand->At(row, k));
      }
    }
  }
}

}  // namespace

void CheckTiles(const KernelTable& unit, const KernelTable& emulated, const RunContext& context) {
  const char* kinds[] = {"same", "nf4/64", "nf4/64d", "fp4/128", "int8/64", "int4/64"};
  // Partial tiles and groups, more than one block of the summation index, more than one strip of w.
  const int64_t sizes[][3] = {{1, 40, 64},   {3, 33, 70},    {16, 32, 512},    {17, 100, 31},
                              {33, 70, 320}, {70, 300, 832}, {100, 260, 4160}, {5, 96, 40000}};
  for (const char* kind : kinds) {
    for (const auto& [M, N, K] : sizes) {
      // With the second what is left of the sums is denormal, with the third those of x.
      for (const double scale : {1.0, 1e-18, 1e-38}) {
        const DType dtype = DType::kBF16;
        Weight w = MakeWeight(unit, context, kind, N, K, dtype);
        Dense x(M, K, dtype), dy(M, N, dtype);
        x.Fill(scale);
        dy.Fill(scale);
        if (w.view.dense.present) {
          w.dense[0].Fill(scale < 1e-30 ? 1e20 : scale);
          Cancel(&x, &w.dense[0]);
        }
        Dense y[2] = {Dense(M, N, dtype), Dense(M, N, dtype)};
        Dense dx[2] = {Dense(M, K, dtype), Dense(M, K, dtype)};
        for (int i = 0; i < 2; ++i) {
          const KernelTable& table = i == 0 ? unit : emulated;
          MatmulOp forward;
          forward.x = x.view;
          forward.w = w.view;
          forward.y = y[i].view;
          MatmulInputGradOp backward;
          backward.dy = dy.view;
          backward.w = w.view;
          backward.dx = dx[i].view;
          Report(table.matmul(forward, context).ok(), "tiles forward");
          Report(table.matmul_input_grad(backward, context).ok(), "tiles backward");
        }
        const std::string what = std::string(kind) + " M" + std::to_string(M) + " N" +
                                 std::to_string(N) + " K" + std::to_string(K) +
                                 (scale < 1e-30 ? " denormal x"
                                  : scale < 1   ? " denormal sums"
                                                : "");
        Report(y[0].buffer.Same(y[1].buffer), "the unit's bits are the emulated ones: y " + what);
        Report(dx[0].buffer.Same(dx[1].buffer),
               "the unit's bits are the emulated ones: dx " + what);
      }
    }
  }
}

}  // namespace lowrank::cpu
