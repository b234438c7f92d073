#include "native/core/ops/explain.h"

#include <atomic>

namespace lowrank {
namespace {

TensorView Matrix(DType dtype, int64_t rows, int64_t cols) {
  TensorView view;
  view.dtype = dtype;
  view.rows = rows;
  view.cols = cols;
  view.present = true;
  view.data = UnreadAddress(view.bytes());
  return view;
}

WeightView WeightOf(const CallShape& shape) {
  WeightView w;
  if (shape.format == nullptr) {
    w.dense = Matrix(shape.dense, shape.N, shape.K);
    return w;
  }
  w.quant.format = shape.format;
  w.quant.rows = shape.N;
  w.quant.cols = shape.K;
  w.quant.blocksize = shape.blocksize;
  w.quant.rowwise = shape.rowwise;
  w.quant.codebook = shape.rowwise ? RowwiseLevels() : shape.format->codebook;
  w.quant.codes = static_cast<uint8_t*>(UnreadAddress(w.quant.code_bytes()));
  const auto blocks = static_cast<size_t>(w.quant.blocks());
  w.quant.absmax = static_cast<float*>(UnreadAddress(blocks * sizeof(float)));
  return w;
}

}  // namespace

void* UnreadAddress(size_t bytes) {
  // Above what a process has, so that a read of it faults.
  static std::atomic<uintptr_t> next{uintptr_t{1} << 56};
  return reinterpret_cast<void*>(next.fetch_add((bytes / 4096 + 1) * 4096));
}

OpsOfShape::OpsOfShape(const CallShape& shape) {
  const auto& [M, N, K, r, dtype, format, dense, blocksize, rowwise, compute] = shape;
  matmul.x = Matrix(dtype, M, K);
  matmul.w = WeightOf(shape);
  matmul.y = Matrix(dtype, M, N);
  matmul.compute = compute;
  input_grad.dy = Matrix(dtype, M, N);
  input_grad.w = matmul.w;
  input_grad.dx = Matrix(dtype, M, K);
  if (r == 0) return;
  lora_forward.x = matmul.x;
  lora_forward.w = matmul.w;
  lora_forward.lora_a = Matrix(DType::kF32, r, K);
  lora_forward.lora_b = Matrix(DType::kF32, N, r);
  lora_forward.h = Matrix(DType::kF32, M, r);
  lora_forward.y = matmul.y;
  lora_forward.scaling = 1;
  lora_forward.compute = compute;
  lora_backward.dy = input_grad.dy;
  lora_backward.x = matmul.x;
  lora_backward.w = matmul.w;
  lora_backward.lora_a = lora_forward.lora_a;
  lora_backward.lora_b = lora_forward.lora_b;
  lora_backward.h = lora_forward.h;
  lora_backward.dx = input_grad.dx;
  lora_backward.d_lora_a = Matrix(DType::kF32, r, K);
  lora_backward.d_lora_b = Matrix(DType::kF32, N, r);
  lora_backward.scaling = 1;
}

Status OpsOfShape::Check() const {
  LOWRANK_RETURN_IF_ERROR(matmul.Check());
  LOWRANK_RETURN_IF_ERROR(input_grad.Check());
  if (!adapter()) return Status();
  LOWRANK_RETURN_IF_ERROR(lora_forward.Check());
  return lora_backward.Check();
}

}  // namespace lowrank
