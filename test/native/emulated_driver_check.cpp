// The emulated driver through its exported symbols, as a program over libcuda sees it: every call,
// every refusal, the order of streams, what a fault leaves behind. Takes the library's path, which
// has test/native/emulated_driver_kernels.cu in it, and how that was built (source or check).
#include "test/native/emulated_driver_fixture.h"

namespace lowrank::test {
namespace {

void BeforeInit() {
  CUdevice device = 7;
  int count = 0;
  CUcontext context = nullptr;
  EXPECT_RESULT(CUDA_ERROR_NOT_INITIALIZED, d.cuDeviceGet(&device, 0));
  EXPECT_RESULT(CUDA_ERROR_NOT_INITIALIZED, d.cuDeviceGetCount(&count));
  EXPECT_RESULT(CUDA_ERROR_NOT_INITIALIZED, d.cuDevicePrimaryCtxRetain(&context, 0));
  EXPECT_RESULT(CUDA_ERROR_INVALID_VALUE, d.cuInit(1));
  // A wrong option is refused by name, and may be corrected.
  setenv("LOWRANK_EMULATOR_STREAMS", "sideways", 1);
  EXPECT_RESULT(CUDA_ERROR_INVALID_VALUE, d.cuInit(0));
  unsetenv("LOWRANK_EMULATOR_STREAMS");
  setenv("LOWRANK_EMULATOR_DEVICES", "0", 1);
  EXPECT_RESULT(CUDA_ERROR_NO_DEVICE, d.cuInit(0));
  setenv("LOWRANK_EMULATOR_DEVICES", "2", 1);
  EXPECT_OK(d.cuInit(0));
  EXPECT_OK(d.cuInit(0));
}

void Devices() {
  int count = 0;
  EXPECT_OK(d.cuDeviceGetCount(&count));
  EXPECT(count == 2);
  CUdevice device = -1;
  EXPECT_OK(d.cuDeviceGet(&device, 1));
  EXPECT(device == 1);
  EXPECT_RESULT(CUDA_ERROR_INVALID_DEVICE, d.cuDeviceGet(&device, 2));
  EXPECT_RESULT(CUDA_ERROR_INVALID_DEVICE, d.cuDeviceGet(&device, -1));
  EXPECT_RESULT(CUDA_ERROR_INVALID_VALUE, d.cuDeviceGet(nullptr, 0));
  char name[64] = "";
  EXPECT_OK(d.cuDeviceGetName(name, sizeof(name), 0));
  EXPECT(std::strncmp(name, "lowrank CUDA emulator (", 23) == 0);
  char small[8];
  EXPECT_OK(d.cuDeviceGetName(small, sizeof(small), 0));
  EXPECT(std::strcmp(small, "lowrank") == 0);
  size_t bytes = 0;
  EXPECT_OK(d.cuDeviceTotalMem_v2(&bytes, 0));
  EXPECT(bytes > (size_t{1} << 20));
  EXPECT_RESULT(CUDA_ERROR_INVALID_DEVICE, d.cuDeviceTotalMem_v2(&bytes, 9));
  int version = 0;
  EXPECT_OK(d.cuDriverGetVersion(&version));
  EXPECT(version == 13000);
  SetOption("driver", "11040");
  EXPECT_OK(d.cuDriverGetVersion(&version));
  EXPECT(version == 11040);
  SetOption("driver", "13000");
}

void Attributes() {
  const auto attribute = [](int number) {
    int value = -1;
    EXPECT_OK(d.cuDeviceGetAttribute(&value, number, 0));
    return value;
  };
  constexpr int kWarpSize = 10, kMaxThreads = 1;
  EXPECT(attribute(kWarpSize) == 32);
  EXPECT(attribute(kMaxThreads) == 1024);
  for (const auto& [sm, shared, count] : {std::tuple<const char*, int, int>{"80", 166912, 108},
                                          {"86", 101376, 82},
                                          {"90", 232448, 132},
                                          {"120", 101376, 170}}) {
    SetOption("sm", sm);
    EXPECT(attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR) * 10 +
               attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR) ==
           std::atoi(sm));
    EXPECT(attribute(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN) == shared);
    EXPECT(attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT) == count);
  }
  SetOption("sm", "80");
  EXPECT(attribute(CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED) == 1);
  int value = 0;
  EXPECT_RESULT(CUDA_ERROR_INVALID_VALUE, d.cuDeviceGetAttribute(&value, 0, 0));
  EXPECT_RESULT(CUDA_ERROR_INVALID_VALUE, d.cuDeviceGetAttribute(&value, 1000, 0));
  EXPECT_RESULT(CUDA_ERROR_INVALID_VALUE,
                d.cuDeviceGetAttribute(nullptr, CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE, 0));
}

void ErrorTexts() {
  const char* text = nullptr;
  EXPECT_OK(d.cuGetErrorName(CUDA_ERROR_ILLEGAL_ADDRESS, &text));
  EXPECT(text != nullptr && std::strcmp(text, "CUDA_ERROR_ILLEGAL_ADDRESS") == 0);
  EXPECT_OK(d.cuGetErrorString(CUDA_ERROR_OUT_OF_MEMORY, &text));
  EXPECT(text != nullptr && std::strcmp(text, "out of memory") == 0);
  EXPECT_RESULT(CUDA_ERROR_INVALID_VALUE, d.cuGetErrorName(12345, &text));
  EXPECT(text == nullptr);
}

void Contexts() {
  CUdeviceptr pointer = 0;
  EXPECT_RESULT(CUDA_ERROR_INVALID_CONTEXT, d.cuMemAlloc_v2(&pointer, 16));
  EXPECT_RESULT(CUDA_ERROR_INVALID_CONTEXT, d.cuCtxPopCurrent_v2(nullptr));
  EXPECT_RESULT(CUDA_ERROR_INVALID_CONTEXT, d.cuDevicePrimaryCtxRelease_v2(0));
  int bogus = 0;
  EXPECT_RESULT(CUDA_ERROR_INVALID_CONTEXT, d.cuCtxSetCurrent(reinterpret_cast<CUcontext>(&bogus)));
  CUcontext first = nullptr;
  CUcontext again = nullptr;
  CUcontext other = nullptr;
  EXPECT_OK(d.cuDevicePrimaryCtxRetain(&first, 0));
  EXPECT_OK(d.cuDevicePrimaryCtxRetain(&again, 0));
  EXPECT_OK(d.cuDevicePrimaryCtxRetain(&other, 1));
  EXPECT(first == again && first != other);
  EXPECT_OK(d.cuCtxPushCurrent_v2(first));
  EXPECT_OK(d.cuCtxPushCurrent_v2(other));
  CUdevice device = -1;
  EXPECT_OK(more.cuCtxGetDevice(&device));
  EXPECT(device == 1);
  CUstream stream = nullptr;
  EXPECT_OK(d.cuStreamCreate(&stream, 0));
  CUcontext popped = nullptr;
  EXPECT_OK(d.cuCtxPopCurrent_v2(&popped));
  EXPECT(popped == other);
  EXPECT_OK(more.cuCtxGetDevice(&device));
  EXPECT(device == 0);
  // A stream of the other context.
  EXPECT_RESULT(CUDA_ERROR_INVALID_CONTEXT, d.cuStreamSynchronize(stream));
  // Released as often as retained; then the context is gone, and so is what was in it.
  EXPECT_OK(d.cuDevicePrimaryCtxRelease_v2(1));
  EXPECT_OK(d.cuDevicePrimaryCtxRelease_v2(0));
  unsigned flags = 9;
  int active = 0;
  EXPECT_OK(more.cuDevicePrimaryCtxGetState(0, &flags, &active));
  EXPECT(active == 1);
  EXPECT_OK(d.cuMemAlloc_v2(&pointer, 16));
  EXPECT_OK(d.cuDevicePrimaryCtxRelease_v2(0));
  EXPECT_OK(more.cuDevicePrimaryCtxGetState(0, &flags, &active));
  EXPECT(active == 0);
  EXPECT_RESULT(CUDA_ERROR_CONTEXT_IS_DESTROYED, d.cuMemFree_v2(pointer));
  EXPECT_OK(d.cuCtxSetCurrent(nullptr));
  EXPECT_OK(more.cuCtxGetCurrent(&first));
  EXPECT(first == nullptr);
}

void Options() {
  EXPECT(more.lowrankEmulatorSetOption("order", "reverse") == 0);
  EXPECT(more.lowrankEmulatorSetOption("order", "forward") == 0);
  EXPECT(more.lowrankEmulatorSetOption("order", "inside out") == -1);
  EXPECT(more.lowrankEmulatorSetOption("colour", "red") == -1);
  EXPECT(more.lowrankEmulatorSetOption("memory", "-1") == -1);
  EXPECT(more.lowrankEmulatorSetOption(nullptr, "1") == -1);
  EXPECT(std::strstr(more.lowrankEmulatorKernels(), "\"test_add_kernel\"") != nullptr);
}

constexpr Case kCases[] = {
    {"before cuInit", BeforeInit}, {"devices", Devices},   {"attributes", Attributes},
    {"error texts", ErrorTexts},   {"contexts", Contexts}, {"options", Options},
};

int Run(const char* path) {
  if (!OpenLibrary(path)) return 1;
  std::vector<Case> cases(std::begin(kCases), std::end(kCases));
  for (const auto& more_cases : {StreamCases(), MemoryCases(), LaunchCases()}) {
    cases.insert(cases.end(), more_cases.begin(), more_cases.end());
  }
  for (const Case& each : cases) {
    current_case = each.name;
    const int before = failures;
    each.body();
    std::printf("%s %s\n", failures == before ? "ok    " : "FAILED", each.name);
    std::fflush(stdout);
  }
  std::printf("%d checks, %d failures\n", checks, failures);
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace lowrank::test

int main(int argc, char** argv) {
  if (argc != 2) {
    std::printf("usage: emulated_driver_check LIBRARY\n");
    return 2;
  }
  return lowrank::test::Run(argv[1]);
}
