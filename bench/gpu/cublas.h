/// cuBLAS where it is installed: opened at run time, so that nothing here needs the toolkit.
#pragma once

#include <string>

#include "native/core/tensor_view.h"
#include "test/gpu/machine.h"

namespace lowrank::cuda {

class Cublas {
 public:
  Cublas() = default;
  Cublas(const Cublas&) = delete;
  Cublas& operator=(const Cublas&) = delete;

  /// libcublas.so.13 or .12, or the file that LOWRANK_CUBLAS names. The context of `memory`'s
  /// machine is current. Fails with the reason where there is none.
  Status Open(DeviceMemory* memory);
  bool open() const { return handle_ != nullptr; }
  /// "12.8.4"
  const std::string& version() const { return version_; }

  /// y [M, N] = x [M, K] · w [N, K]ᵀ, all of one 16-bit dtype, sums in f32.
  Status Product(const TensorView& x, const TensorView& w, const TensorView& y, CUstream stream);

 private:
  using Handle = void*;

  Handle handle_ = nullptr;
  std::string version_;
  int (*set_stream_)(Handle, CUstream) = nullptr;
  int (*set_workspace_)(Handle, void*, size_t) = nullptr;
  int (*gemm_)(Handle, int transpose_a, int transpose_b, int m, int n, int k, const void* alpha,
               const void* a, int a_type, int lda, const void* b, int b_type, int ldb,
               const void* beta, void* c, int c_type, int ldc, int compute_type,
               int algorithm) = nullptr;
  void* workspace_ = nullptr;
};

}  // namespace lowrank::cuda
