#include "bench/gpu/cublas.h"

#include <dlfcn.h>

#include <cstdlib>

namespace lowrank::cuda {
namespace {

// Of its interface, which is C.
constexpr int kNoTranspose = 0;
constexpr int kTranspose = 1;
constexpr int kF16 = 2;
constexpr int kBF16 = 14;
constexpr int kComputeF32 = 68;
constexpr int kDefaultAlgorithm = -1;
/// What it would allocate for itself in a call, which a graph cannot hold.
constexpr size_t kWorkspaceBytes = size_t{64} << 20;

Status Absent(const std::string& why) { return Status(Code::kUnsupported, why); }

}  // namespace

Status Cublas::Open(DeviceMemory* memory) {
  const char* const asked = std::getenv("LOWRANK_CUBLAS");
  void* library = nullptr;
  for (const char* name :
       {asked, "libcublas.so.13", "libcublas.so.12", "/usr/local/cuda/lib64/libcublas.so"}) {
    if (library == nullptr && name != nullptr) library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
  }
  if (library == nullptr) {
    return Absent("neither libcublas.so.13 nor .12 is found (LOWRANK_CUBLAS can name it)");
  }
  int (*create)(Handle*) = nullptr;
  int (*get_version)(Handle, int*) = nullptr;
  const auto look_up = [&](auto* function, const char* name) {
    *function = reinterpret_cast<std::remove_pointer_t<decltype(function)>>(dlsym(library, name));
    return *function != nullptr;
  };
  if (!look_up(&create, "cublasCreate_v2") || !look_up(&get_version, "cublasGetVersion_v2") ||
      !look_up(&set_stream_, "cublasSetStream_v2") ||
      !look_up(&set_workspace_, "cublasSetWorkspace_v2") || !look_up(&gemm_, "cublasGemmEx")) {
    return Absent("the library lacks a function that is needed");
  }
  Handle handle = nullptr;
  if (const int status = create(&handle); status != 0 || handle == nullptr) {
    return Absent("it does not start, status " + std::to_string(status));
  }
  int version = 0;
  get_version(handle, &version);
  version_ = std::to_string(version / 10000) + "." + std::to_string(version % 10000 / 100) + "." +
             std::to_string(version % 100);
  workspace_ = memory->Take(kWorkspaceBytes);
  LOWRANK_RETURN_IF_ERROR(memory->status());
  handle_ = handle;
  return Status();
}

Status Cublas::Product(const TensorView& x, const TensorView& w, const TensorView& y,
                       CUstream stream) {
  const float one = 1;
  const float zero = 0;
  const int type = x.dtype == DType::kBF16 ? kBF16 : kF16;
  const int M = static_cast<int>(x.rows);
  const int N = static_cast<int>(w.rows);
  const int K = static_cast<int>(x.cols);
  // It reads columns first: yᵀ [N, M] = w · xᵀ.
  int status = set_stream_(handle_, stream);
  // Setting the stream goes back to its own workspace.
  if (status == 0) status = set_workspace_(handle_, workspace_, kWorkspaceBytes);
  if (status == 0) {
    status = gemm_(handle_, kTranspose, kNoTranspose, N, M, K, &one, w.data, type, K, x.data, type,
                   K, &zero, y.data, type, N, kComputeF32, kDefaultAlgorithm);
  }
  if (status == 0) return Status();
  return Status(Code::kCompute,
                "cuBLAS: cublasGemmEx failed with status " + std::to_string(status));
}

}  // namespace lowrank::cuda
