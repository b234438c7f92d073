// Modules, kernels, launches and faults of the emulated driver.
#include <atomic>
#include <fstream>
#include <thread>

#include "test/native/emulated_driver_fixture.h"

namespace lowrank::test {
namespace {

bool IsCheckLibrary() {
  return std::strstr(more.lowrankEmulatorKernels(), "\"variant\":\"check\"") != nullptr;
}

void Modules() {
  Fixture f;
  CUmodule module = nullptr;
  CUfunction function = nullptr;
  EXPECT_RESULT(CUDA_ERROR_INVALID_VALUE, d.cuModuleLoadData(&module, nullptr));
  EXPECT_OK(d.cuModuleLoadData(&module, "image"));
  EXPECT_RESULT(CUDA_ERROR_NOT_FOUND, d.cuModuleGetFunction(&function, module, "no_such_kernel"));
  EXPECT_RESULT(CUDA_ERROR_INVALID_VALUE, d.cuModuleGetFunction(&function, module, nullptr));
  EXPECT_OK(d.cuModuleGetFunction(&function, module, "test_add_kernel"));
  CUfunction again = nullptr;
  EXPECT_OK(d.cuModuleGetFunction(&again, module, "test_add_kernel"));
  EXPECT(function == again);
  auto* y = f.Memory<float>(4);
  EXPECT_OK(d.cuModuleUnload(module));
  EXPECT_RESULT(CUDA_ERROR_INVALID_HANDLE, d.cuModuleUnload(module));
  EXPECT_RESULT(CUDA_ERROR_INVALID_HANDLE, Launch(function, nullptr, AddParams{y, y, 4, 1}));
}

void KernelsOfOtherDevices() {
  for (const auto& [sm, expected] :
       {std::pair{"80", CUDA_ERROR_NOT_FOUND}, std::pair{"90", CUDA_SUCCESS},
        std::pair{"120", CUDA_ERROR_NOT_FOUND}}) {
    SetOption("sm", sm);
    Fixture f;
    CUfunction function = nullptr;
    EXPECT_RESULT(expected, d.cuModuleGetFunction(&function, f.module, "test_wgmma_kernel"));
  }
  SetOption("sm", "80");
}

void FunctionAttributes() {
  Fixture f;
  const CUfunction add = f.Kernel("test_add_kernel");
  const auto attribute = [&](CUfunction_attribute number) {
    int value = -1;
    EXPECT_OK(d.cuFuncGetAttribute(&value, number, add));
    return value;
  };
  EXPECT(attribute(CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK) == 256);
  EXPECT(attribute(CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES) == 0);
  EXPECT(attribute(CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES) == 0);
  EXPECT(attribute(CU_FUNC_ATTRIBUTE_NUM_REGS) == 255);
  EXPECT(attribute(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) == 48 << 10);
  EXPECT_RESULT(
      CUDA_ERROR_INVALID_VALUE,
      d.cuFuncSetAttribute(add, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, (163 << 10) + 1));
  EXPECT_OK(d.cuFuncSetAttribute(add, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, 163 << 10));
  EXPECT(attribute(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) == 163 << 10);
  int value = 0;
  EXPECT_RESULT(CUDA_ERROR_INVALID_VALUE, d.cuFuncGetAttribute(&value, 99, add));
  EXPECT_RESULT(CUDA_ERROR_INVALID_HANDLE, d.cuFuncGetAttribute(&value, 0, nullptr));
  int blocks = -1;
  const auto occupancy = [&](int threads, size_t shared) {
    EXPECT_OK(d.cuOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, add, threads, shared));
    return blocks;
  };
  EXPECT(occupancy(256, 0) == 1);               // 255 registers: 65,536 / (256 · 255)
  EXPECT(occupancy(32, 80 << 10) == 2);         // shared memory: 164 KiB / 81 KiB
  EXPECT(occupancy(512, 0) == 0);               // more than the launch bounds
  EXPECT(occupancy(32, size_t{1} << 30) == 0);  // more than there is
}

void LaunchesAreRefused() {
  Fixture f;
  const CUstream stream = f.Stream();
  const CUfunction add = f.Kernel("test_add_kernel");
  auto* y = f.Memory<float>(4);
  const AddParams params{y, y, 4, 1};
  EXPECT_RESULT(CUDA_ERROR_INVALID_VALUE, Launch(add, stream, params, 0));
  EXPECT_RESULT(CUDA_ERROR_INVALID_VALUE, Launch(add, stream, params, 0x80000000u));
  EXPECT_RESULT(CUDA_ERROR_INVALID_VALUE, Launch(add, stream, params, 1, 0));
  EXPECT_RESULT(CUDA_ERROR_INVALID_VALUE, Launch(add, stream, params, 1, 1025));
  EXPECT_RESULT(CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, Launch(add, stream, params, 1, 288));
  EXPECT_RESULT(CUDA_ERROR_INVALID_VALUE, Launch(add, stream, params, 1, 32, (48 << 10) + 4));
  EXPECT_RESULT(CUDA_ERROR_INVALID_HANDLE, Launch(nullptr, stream, params));
  int bogus = 0;
  EXPECT_RESULT(CUDA_ERROR_INVALID_HANDLE, Launch(add, reinterpret_cast<CUstream>(&bogus), params));
  EXPECT_RESULT(CUDA_ERROR_INVALID_VALUE,
                more.cuLaunchKernel(add, 1, 1, 1, 32, 1, 1, 0, stream, nullptr, nullptr));
  EXPECT_RESULT(CUDA_ERROR_INVALID_VALUE, d.cuLaunchKernelEx(nullptr, add, nullptr, nullptr));
  EXPECT_RESULT(CUDA_ERROR_INVALID_VALUE,
                more.cuLaunchKernel(add, 1, 70000, 1, 32, 1, 1, 0, stream, nullptr, nullptr));
  // None of that has failed anything.
  EXPECT_OK(Launch(add, stream, params, 1, 32));
  EXPECT_OK(d.cuStreamSynchronize(stream));
}

void Clusters() {
  for (const char* sm : {"80", "90"}) {
    SetOption("sm", sm);
    Fixture f;
    const CUfunction add = f.Kernel("test_add_kernel");
    auto* y = f.Memory<float>(4);
    AddParams params{y, y, 4, 1};
    void* arguments[] = {&params};
    CUlaunchAttribute attributes[2] = {};
    attributes[0].id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
    attributes[1].id = CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
    CUlaunchConfig config = {};
    config.gridDimX = 6;
    config.gridDimY = config.gridDimZ = config.blockDimY = config.blockDimZ = 1;
    config.blockDimX = 32;
    config.attrs = attributes;
    config.numAttrs = 2;
    const auto with = [&](unsigned cluster) {
      attributes[1].value.clusterDim = {cluster, 1, 1};
      return d.cuLaunchKernelEx(&config, add, arguments, nullptr);
    };
    EXPECT_OK(with(1));
    const bool hopper = std::strcmp(sm, "90") == 0;
    EXPECT_RESULT(hopper ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CLUSTER_SIZE, with(2));
    EXPECT_RESULT(CUDA_ERROR_INVALID_CLUSTER_SIZE, with(4));  // 6 blocks
    EXPECT_RESULT(CUDA_ERROR_INVALID_CLUSTER_SIZE, with(16));
    EXPECT_OK(more.cuCtxSynchronize());
  }
  SetOption("sm", "80");
}

void ParametersAreCopied() {
  Fixture f;
  const CUstream stream = f.Stream();
  const CUfunction kernel = f.Kernel("test_params_kernel");
  auto* y = f.Memory<uint32_t>(4);
  LargeParams params = {};
  params.y = y;
  params.padding[0] = 1000;
  params.padding[997] = 200;
  params.last = 34;
  void* arguments[] = {&params};
  EXPECT_OK(more.cuLaunchKernel(kernel, 1, 1, 1, 32, 1, 1, 0, stream, arguments, nullptr));
  std::memset(&params, 0xee, sizeof(params));  // the call has returned
  EXPECT_OK(d.cuStreamSynchronize(stream));
  EXPECT(ReadBack(y, 1)[0] == 1234);
  // Packed, by size.
  LargeParams packed = {};
  packed.y = y;
  packed.last = 77;
  size_t bytes = sizeof(packed);
  void* extra[] = {reinterpret_cast<void*>(uintptr_t{1}), &packed,
                   reinterpret_cast<void*>(uintptr_t{2}), &bytes, nullptr};
  EXPECT_OK(more.cuLaunchKernel(kernel, 1, 1, 1, 32, 1, 1, 0, stream, nullptr, extra));
  EXPECT_OK(d.cuStreamSynchronize(stream));
  EXPECT(ReadBack(y, 1)[0] == 77);
  bytes -= 8;
  EXPECT_RESULT(CUDA_ERROR_INVALID_VALUE,
                more.cuLaunchKernel(kernel, 1, 1, 1, 32, 1, 1, 0, stream, nullptr, extra));
}

/// After a fault every call of the context tells it, nothing queued runs, what frees still frees,
/// and a new context works.
void FaultsStay() {
  uint64_t used = 1;
  {
    Fixture f;
    const CUstream stream = f.Stream();
    const CUevent event = f.Event();
    auto* y = f.Memory<uint32_t>(1024);
    auto* log = f.Memory<uint32_t>(64);
    const CUfunction wild = f.Kernel("test_wild_kernel");
    const CUfunction append = f.Kernel("test_append_kernel");
    CUdeviceptr pooled = 0;
    EXPECT_OK(d.cuMemAllocFromPoolAsync(&pooled, 256, f.pool, stream));
    // Held back until all is queued: a fault that is there already refuses what comes after it.
    std::atomic<bool> queued{false};
    EXPECT_OK(more.cuLaunchHostFunc(
        stream,
        [](void* flag) {
          while (!static_cast<std::atomic<bool>*>(flag)->load()) std::this_thread::yield();
        },
        &queued));
    EXPECT_OK(Launch(wild, stream, WildParams{reinterpret_cast<uint32_t*>(uintptr_t{64}), 0}));
    EXPECT_OK(Launch(append, stream, AppendParams{log, 1, 0}));
    bool called = false;
    EXPECT_OK(more.cuLaunchHostFunc(
        stream, [](void* flag) { *static_cast<bool*>(flag) = true; }, &called));
    queued = true;
    const CUresult fault = d.cuStreamSynchronize(stream);
    EXPECT(fault == CUDA_ERROR_ILLEGAL_ADDRESS || fault == CUDA_ERROR_ASSERT);
    EXPECT(!called);
    EXPECT(std::strstr(more.lowrankEmulatorLastReport(), "test_wild_kernel") != nullptr);
    EXPECT_RESULT(fault, d.cuStreamSynchronize(stream));
    EXPECT_RESULT(fault, d.cuStreamQuery(stream));
    EXPECT_RESULT(fault, d.cuEventRecord(event, stream));
    EXPECT_RESULT(fault, d.cuEventQuery(event));
    EXPECT_RESULT(fault, Launch(append, stream, AppendParams{log, 2, 0}));
    EXPECT_RESULT(fault, more.cuCtxSynchronize());
    CUdeviceptr pointer = 0;
    CUstream other = nullptr;
    CUmodule module = nullptr;
    EXPECT_RESULT(fault, d.cuMemAlloc_v2(&pointer, 16));
    EXPECT_RESULT(fault, d.cuMemAllocFromPoolAsync(&pointer, 16, f.pool, stream));
    EXPECT_RESULT(fault, d.cuStreamCreate(&other, 0));
    EXPECT_RESULT(fault, d.cuModuleLoadData(&module, "image"));
    EXPECT_RESULT(fault, d.cuMemsetD8Async(Pointer(y), 0, 4, stream));
    CUcontext again = nullptr;
    EXPECT_RESULT(fault, d.cuDevicePrimaryCtxRetain(&again, 0));
    EXPECT_RESULT(fault, d.cuMemFreeAsync(pooled, stream));
    EXPECT_RESULT(fault, d.cuMemFree_v2(Pointer(y)));
    EXPECT_RESULT(fault, d.cuEventDestroy_v2(event));
    EXPECT_RESULT(fault, d.cuStreamDestroy_v2(stream));
    EXPECT_RESULT(fault, d.cuModuleUnload(f.module));
    EXPECT(log[0] == 0);
  }
  Fixture f;
  EXPECT_OK(more.cuMemPoolGetAttribute(f.pool, CU_MEMPOOL_ATTR_USED_MEM_CURRENT, &used));
  EXPECT(used == 0);
  auto* log = f.Memory<uint32_t>(64);
  EXPECT_OK(Launch(f.Kernel("test_append_kernel"), nullptr, AppendParams{log, 1, 0}));
  EXPECT_OK(more.cuCtxSynchronize());
  EXPECT(ReadBack(log, 2)[1] == 1);
}

/// Just past the end of an allocation: the page that faults in every build.
void OneTooFar() {
  Fixture f;
  auto* y = f.Memory<uint32_t>(1024);
  EXPECT_OK(Launch(f.Kernel("test_wild_kernel"), nullptr, WildParams{y, 1023}));
  EXPECT_OK(more.cuCtxSynchronize());
  EXPECT_OK(Launch(f.Kernel("test_wild_kernel"), nullptr, WildParams{y, 1024}));
  EXPECT(more.cuCtxSynchronize() != CUDA_SUCCESS);
}

void RacesAreFound() {
  for (const uint32_t racy : {0u, 1u}) {
    Fixture f;
    auto* y = f.Memory<float>(64);
    EXPECT_OK(
        Launch(f.Kernel("test_neighbour_kernel"), nullptr, NeighbourParams{y, racy}, 1, 64, 256));
    const bool found = racy == 1 && IsCheckLibrary();
    EXPECT_RESULT(found ? CUDA_ERROR_ASSERT : CUDA_SUCCESS, more.cuCtxSynchronize());
    if (found) {
      EXPECT(std::strstr(more.lowrankEmulatorLastReport(), "race-shared") != nullptr);
      EXPECT(std::strstr(more.lowrankEmulatorLastReport(), "emulated_driver_kernels.cu:") !=
             nullptr);
    }
  }
}

/// What launches are traced to while this lives.
class TraceFile {
 public:
  TraceFile() {
    const int handle = mkstemp(path_);
    EXPECT(handle >= 0);
    close(handle);
    SetOption("trace", path_);
  }
  ~TraceFile() {
    SetOption("trace", "");
    unlink(path_);
  }
  TraceFile(const TraceFile&) = delete;
  TraceFile& operator=(const TraceFile&) = delete;

  std::vector<std::string> Lines() const {
    std::ifstream file(path_);
    std::vector<std::string> lines;
    for (std::string line; std::getline(file, line);) lines.push_back(line);
    return lines;
  }

 private:
  char path_[32] = "/tmp/lowrank-trace-XXXXXX";
};

void CountersAndTrace() {
  SetOption("counters", "1");
  const TraceFile trace;
  more.lowrankEmulatorResetCounters();
  {
    Fixture f;
    auto* x = f.Memory<float>(1024);
    for (int i = 0; i < 2; ++i) {
      EXPECT_OK(Launch(f.Kernel("test_add_kernel"), nullptr, AddParams{x, x, 1024, 1}, 4, 256));
    }
    EXPECT_OK(more.cuCtxSynchronize());
  }
  SetOption("counters", "0");
  const std::string counters = more.lowrankEmulatorCounters();
  EXPECT(counters.find("\"launches\":2") != std::string::npos);
  if (IsCheckLibrary()) {
    // 1,024 floats by 32 warps twice: 4 sectors a request, each way.
    EXPECT(counters.find("\"requests\":64,\"cost\":256,\"ideal\":256") != std::string::npos);
  }
  const std::vector<std::string> lines = trace.Lines();
  for (const std::string& line : lines) {
    EXPECT(line.find("{\"kernel\":\"test_add_kernel\",\"grid\":[4,1,1],\"block\":[256,1,1]") == 0);
    EXPECT(line.find("\"status\":\"ok\",\"findings\":[]") != std::string::npos);
  }
  EXPECT(lines.size() == 2);
  more.lowrankEmulatorResetCounters();
  EXPECT(std::strstr(more.lowrankEmulatorCounters(), "\"launches\":0") != nullptr);
  EXPECT(*more.lowrankEmulatorLastReport() == 0);
}

/// With RUN=0 a launch is in the trace, and memory as it was.
void LaunchesThatDoNotRun() {
  const TraceFile trace;
  EXPECT(more.lowrankEmulatorSetOption("run", "2") != 0);
  Fixture f;
  auto* x = f.Memory<float>(64);
  for (const char* run : {"0", "1"}) {
    SetOption("run", run);
    EXPECT_OK(more.cuMemsetD8_v2(reinterpret_cast<CUdeviceptr>(x), 0, 64 * sizeof(float)));
    EXPECT_OK(Launch(f.Kernel("test_add_kernel"), nullptr, AddParams{x, x, 64, 3}, 1, 64));
    EXPECT_OK(more.cuCtxSynchronize());
    EXPECT(x[0] == (*run == '0' ? 0 : 3) && x[63] == x[0]);
  }
  const std::vector<std::string> lines = trace.Lines();
  EXPECT(lines.size() == 2);
  for (const std::string& line : lines) {
    EXPECT(line.find("{\"kernel\":\"test_add_kernel\",\"grid\":[1,1,1],\"block\":[64,1,1]") == 0);
    EXPECT(line == lines[0]);
  }
}

void TensorMaps() {
  CUtensorMap map = {};
  const uint64_t size[] = {64, 16};
  const uint64_t stride[] = {128};
  const uint32_t box[] = {32, 8};
  const uint32_t step[] = {1, 1};
  const auto encode = [&](void* base, CUtensorMapSwizzle swizzle, const uint32_t* boxes) {
    return d.cuTensorMapEncodeTiled(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, base, size, stride,
                                    boxes, step, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle,
                                    CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                                    CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  };
  {
    Fixture f;
    EXPECT_RESULT(CUDA_ERROR_NOT_SUPPORTED,
                  encode(f.Memory<unsigned char>(2048), CU_TENSOR_MAP_SWIZZLE_64B, box));
  }
  SetOption("sm", "90");
  Fixture f;
  SetOption("sm", "80");
  auto* base = f.Memory<unsigned char>(4096);
  EXPECT_OK(encode(base, CU_TENSOR_MAP_SWIZZLE_64B, box));
  EXPECT_RESULT(CUDA_ERROR_INVALID_VALUE, encode(nullptr, CU_TENSOR_MAP_SWIZZLE_64B, box));
  EXPECT_RESULT(CUDA_ERROR_INVALID_VALUE, encode(base + 4, CU_TENSOR_MAP_SWIZZLE_64B, box));
  const uint32_t wide[] = {64, 8};  // 128 bytes, more than the swizzle's span
  EXPECT_RESULT(CUDA_ERROR_INVALID_VALUE, encode(base, CU_TENSOR_MAP_SWIZZLE_64B, wide));
  EXPECT_OK(encode(base, CU_TENSOR_MAP_SWIZZLE_128B, wide));
}

}  // namespace

std::vector<Case> LaunchCases() {
  return {
      {"modules", Modules},
      {"kernels of other devices", KernelsOfOtherDevices},
      {"function attributes and occupancy", FunctionAttributes},
      {"launches are refused", LaunchesAreRefused},
      {"clusters", Clusters},
      {"parameters are copied", ParametersAreCopied},
      {"faults stay", FaultsStay},
      {"one too far", OneTooFar},
      {"races are found", RacesAreFound},
      {"counters and trace", CountersAndTrace},
      {"launches that do not run", LaunchesThatDoNotRun},
      {"tensor maps", TensorMaps},
  };
}

}  // namespace lowrank::test
