// Memory of the emulated driver: allocation, pools, limits, copies, freed memory.
#include <algorithm>

#include "test/native/emulated_driver_fixture.h"

namespace lowrank::test {
namespace {

bool IsCheckLibrary() {
  return std::strstr(more.lowrankEmulatorKernels(), "\"variant\":\"check\"") != nullptr;
}

void AllocateAndFree() {
  Fixture f;
  CUdeviceptr pointer = 0;
  EXPECT_RESULT(CUDA_ERROR_INVALID_VALUE, d.cuMemAlloc_v2(&pointer, 0));
  EXPECT_RESULT(CUDA_ERROR_INVALID_VALUE, d.cuMemAlloc_v2(nullptr, 16));
  EXPECT_OK(d.cuMemAlloc_v2(&pointer, 1000));
  EXPECT(pointer % 256 == 0);
  // Fresh memory is a NaN in every float format.
  const auto* fresh = reinterpret_cast<const unsigned char*>(pointer);
  EXPECT(std::all_of(fresh, fresh + 1000, [](unsigned char byte) { return byte == 0xff; }));
  EXPECT_RESULT(CUDA_ERROR_INVALID_VALUE, d.cuMemFree_v2(pointer + 256));
  EXPECT_OK(d.cuMemFree_v2(pointer));
  EXPECT_RESULT(CUDA_ERROR_INVALID_VALUE, d.cuMemFree_v2(pointer));
  EXPECT_OK(d.cuMemFree_v2(0));
}

void PoolsKeepWhatIsFreed() {
  Fixture f;
  const CUstream stream = f.Stream();
  CUmemoryPool pool = nullptr;
  CUmemPoolProps props = {};
  EXPECT_RESULT(CUDA_ERROR_INVALID_VALUE, d.cuMemPoolCreate(&pool, &props));
  props.allocType = CU_MEM_ALLOCATION_TYPE_PINNED;
  props.location = {CU_MEM_LOCATION_TYPE_DEVICE, 1};
  EXPECT_RESULT(CUDA_ERROR_INVALID_DEVICE, d.cuMemPoolCreate(&pool, &props));
  props.location.id = 0;
  EXPECT_OK(d.cuMemPoolCreate(&pool, &props));
  const auto read = [&](CUmemPool_attribute attribute) {
    uint64_t value = ~uint64_t{0};
    EXPECT_OK(more.cuMemPoolGetAttribute(pool, attribute, &value));
    return value;
  };
  CUdeviceptr a = 0;
  CUdeviceptr b = 0;
  EXPECT_OK(d.cuMemAllocFromPoolAsync(&a, 5000, pool, stream));
  EXPECT_OK(d.cuMemAllocFromPoolAsync(&b, 3000, pool, stream));
  EXPECT(read(CU_MEMPOOL_ATTR_USED_MEM_CURRENT) == 5120 + 3072);
  EXPECT_OK(d.cuMemFreeAsync(a, stream));
  EXPECT_RESULT(CUDA_ERROR_INVALID_VALUE, d.cuMemFreeAsync(a, stream));
  uint64_t threshold = 4096;
  EXPECT_OK(d.cuMemPoolSetAttribute(pool, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, &threshold));
  EXPECT_OK(d.cuStreamSynchronize(stream));
  EXPECT(read(CU_MEMPOOL_ATTR_USED_MEM_CURRENT) == 3072);
  EXPECT(read(CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT) == 4096);
  EXPECT_OK(d.cuMemPoolTrimTo(pool, 0));
  EXPECT(read(CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT) == 3072);
  EXPECT_OK(d.cuMemFreeAsync(b, stream));
  EXPECT_OK(d.cuMemPoolDestroy(pool));
  EXPECT_RESULT(CUDA_ERROR_INVALID_VALUE, d.cuMemPoolTrimTo(pool, 0));
  EXPECT_RESULT(CUDA_ERROR_INVALID_VALUE, d.cuMemAllocFromPoolAsync(&a, 16, pool, stream));
  EXPECT_OK(d.cuStreamSynchronize(stream));
}

void MemoryRunsOut() {
  SetOption("memory", "1048576");
  Fixture f;
  SetOption("memory", "0");
  const CUstream stream = f.Stream();
  size_t free_bytes = 0;
  size_t total = 0;
  EXPECT_OK(d.cuMemGetInfo_v2(&free_bytes, &total));
  EXPECT(free_bytes == (1u << 20) && total == (1u << 20));
  CUdeviceptr a = 0;
  CUdeviceptr b = 0;
  EXPECT_RESULT(CUDA_ERROR_OUT_OF_MEMORY, d.cuMemAlloc_v2(&a, (1 << 20) + 1));
  EXPECT_RESULT(CUDA_ERROR_OUT_OF_MEMORY, d.cuMemAlloc_v2(&a, ~size_t{0} - 100));
  EXPECT_OK(d.cuMemAlloc_v2(&a, 600000));
  EXPECT_RESULT(CUDA_ERROR_OUT_OF_MEMORY, d.cuMemAllocFromPoolAsync(&b, 600000, f.pool, stream));
  EXPECT_OK(d.cuMemAllocFromPoolAsync(&b, 400000, f.pool, stream));
  EXPECT_OK(d.cuMemGetInfo_v2(&free_bytes, &total));
  EXPECT(free_bytes < 60000);
  // What a pool only keeps does not stand in the way of another allocation.
  uint64_t threshold = ~uint64_t{0};
  EXPECT_OK(d.cuMemPoolSetAttribute(f.pool, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, &threshold));
  EXPECT_OK(d.cuMemFreeAsync(b, stream));
  EXPECT_OK(d.cuStreamSynchronize(stream));
  EXPECT_OK(d.cuMemAlloc_v2(&b, 400000));
  EXPECT_OK(d.cuMemFree_v2(b));
  // Nor does running out spoil the context.
  EXPECT_OK(d.cuMemFree_v2(a));
  EXPECT_OK(d.cuMemAlloc_v2(&a, 1 << 20));
}

void CopiesGoBothWays() {
  Fixture f;
  const CUstream stream = f.Stream();
  std::vector<unsigned char> source(10000);
  for (size_t i = 0; i < source.size(); ++i) source[i] = static_cast<unsigned char>(i * 7);
  auto* a = f.Memory<unsigned char>(source.size());
  auto* b = f.Memory<unsigned char>(source.size());
  EXPECT_OK(d.cuMemcpyHtoDAsync_v2(Pointer(a), source.data(), source.size(), stream));
  EXPECT_OK(d.cuMemcpyDtoDAsync_v2(Pointer(b), Pointer(a), source.size(), stream));
  EXPECT_OK(d.cuMemsetD8Async(Pointer(b) + 10, 9, 5, stream));
  std::vector<unsigned char> back(source.size());
  EXPECT_OK(d.cuMemcpyDtoHAsync_v2(back.data(), Pointer(b), back.size(), stream));
  // Pageable memory: the call returned once the bytes were there.
  std::fill(source.begin() + 10, source.begin() + 15, static_cast<unsigned char>(9));
  EXPECT(back == source);
  // Past an end, a stranger's pointer, no pointer, nothing to do.
  EXPECT_RESULT(CUDA_ERROR_INVALID_VALUE,
                d.cuMemcpyHtoDAsync_v2(Pointer(a) + 1, source.data(), source.size(), stream));
  EXPECT_RESULT(CUDA_ERROR_INVALID_VALUE,
                d.cuMemcpyDtoHAsync_v2(back.data(), Pointer(source.data()), 4, stream));
  EXPECT_RESULT(CUDA_ERROR_INVALID_VALUE, d.cuMemsetD8Async(Pointer(a), 0, 10001, stream));
  EXPECT_RESULT(CUDA_ERROR_INVALID_VALUE, d.cuMemcpyHtoDAsync_v2(Pointer(a), nullptr, 4, stream));
  EXPECT_OK(d.cuMemcpyHtoDAsync_v2(Pointer(a), nullptr, 0, stream));
  EXPECT_OK(d.cuMemsetD8Async(0, 0, 0, stream));
  EXPECT_OK(more.cuMemcpyHtoD_v2(Pointer(a), back.data(), 100));
  EXPECT_OK(more.cuMemcpyDtoD_v2(Pointer(b) + 500, Pointer(a), 100));
  EXPECT(ReadBack(b, 600)[599] == back[99]);
}

void PinnedMemoryIsReadLate() {
  SetOption("streams", "late");
  Fixture f;
  SetOption("streams", "eager");
  const CUstream stream = f.Stream();
  void* raw = nullptr;
  EXPECT_RESULT(CUDA_ERROR_INVALID_VALUE, d.cuMemHostAlloc(&raw, 0, 0));
  EXPECT_RESULT(CUDA_ERROR_INVALID_VALUE, d.cuMemHostAlloc(&raw, 16, 8));
  EXPECT_OK(d.cuMemHostAlloc(&raw, 64, CU_MEMHOSTALLOC_PORTABLE));
  auto* pinned = static_cast<unsigned char*>(raw);
  auto* memory = f.Memory<unsigned char>(64);
  std::memset(pinned, 1, 64);
  EXPECT_OK(d.cuMemcpyHtoDAsync_v2(Pointer(memory), pinned, 64, stream));
  // The mistake that pinned memory invites: changed before the copy had its turn.
  std::memset(pinned, 2, 64);
  EXPECT_OK(d.cuStreamSynchronize(stream));
  EXPECT(memory[0] == 2);
  // And read before it was written.
  EXPECT_OK(d.cuMemsetD8Async(Pointer(memory), 3, 64, stream));
  EXPECT_OK(d.cuMemcpyDtoHAsync_v2(pinned, Pointer(memory), 64, stream));
  EXPECT(pinned[0] == 2);
  EXPECT_OK(d.cuStreamSynchronize(stream));
  EXPECT(pinned[0] == 3);
  int outside = 0;
  EXPECT_RESULT(CUDA_ERROR_INVALID_VALUE, d.cuMemFreeHost(&outside));
  EXPECT_OK(d.cuMemFreeHost(pinned));
  EXPECT_RESULT(CUDA_ERROR_INVALID_VALUE, d.cuMemFreeHost(pinned));
}

void PointersAreKnown() {
  Fixture f;
  auto* memory = f.Memory<unsigned char>(100);
  unsigned type = 0;
  int ordinal = -1;
  EXPECT_OK(d.cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, Pointer(memory) + 99));
  EXPECT(type == CU_MEMORYTYPE_DEVICE);
  EXPECT_OK(
      d.cuPointerGetAttribute(&ordinal, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, Pointer(memory)));
  EXPECT(ordinal == 0);
  constexpr CUpointer_attribute kStart = 11, kSize = 12;
  CUdeviceptr start = 0;
  size_t bytes = 0;
  EXPECT_OK(d.cuPointerGetAttribute(&start, kStart, Pointer(memory) + 50));
  EXPECT_OK(d.cuPointerGetAttribute(&bytes, kSize, Pointer(memory) + 50));
  EXPECT(start == Pointer(memory) && bytes == 100);
  EXPECT_RESULT(
      CUDA_ERROR_INVALID_VALUE,
      d.cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, Pointer(memory) + 100));
  EXPECT_RESULT(CUDA_ERROR_INVALID_VALUE,
                d.cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, Pointer(&type)));
  void* pinned = nullptr;
  EXPECT_OK(d.cuMemHostAlloc(&pinned, 16, 0));
  EXPECT_OK(d.cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, Pointer(pinned)));
  EXPECT(type == 1);
  EXPECT_OK(d.cuMemFreeHost(pinned));
}

/// A kernel that reads memory which the stream has freed, and a copy that does.
void FreedMemoryIsClosed() {
  {
    Fixture f;
    const CUstream stream = f.Stream();
    auto* y = f.Memory<float>(64);
    CUdeviceptr x = 0;
    EXPECT_OK(d.cuMemAllocFromPoolAsync(&x, 256, f.pool, stream));
    EXPECT_OK(d.cuMemsetD8Async(x, 0, 256, stream));
    EXPECT_OK(d.cuMemFreeAsync(x, stream));
    const AddParams params{reinterpret_cast<float*>(x), y, 64, 1};
    EXPECT_OK(Launch(f.Kernel("test_add_kernel"), stream, params, 1, 64));
    const CUresult result = d.cuStreamSynchronize(stream);
    EXPECT(result == CUDA_ERROR_ILLEGAL_ADDRESS || result == CUDA_ERROR_ASSERT);
    if (IsCheckLibrary()) {
      EXPECT(std::strstr(more.lowrankEmulatorLastReport(), "freed") != nullptr);
    }
  }
  {
    Fixture f;
    const CUstream stream = f.Stream();
    const CUstream other = f.Stream();
    CUdeviceptr x = 0;
    EXPECT_OK(d.cuMemAllocFromPoolAsync(&x, 256, f.pool, stream));
    EXPECT_OK(d.cuMemFreeAsync(x, stream));
    // After the free in call order: the driver knows no such memory.
    EXPECT_RESULT(CUDA_ERROR_INVALID_VALUE, d.cuMemsetD8Async(x, 0, 256, other));
  }
  {
    // Before it in call order, after it in the order of streams: the other stream does not wait.
    Fixture f;
    const CUstream stream = f.Stream();
    const CUstream other = f.Stream();
    volatile bool open = false;
    const auto wait = [](void* flag) {
      while (!*static_cast<volatile bool*>(flag)) usleep(200);
    };
    EXPECT_OK(more.cuLaunchHostFunc(stream, wait, const_cast<bool*>(&open)));
    CUdeviceptr x = 0;
    EXPECT_OK(d.cuMemAllocFromPoolAsync(&x, 256, f.pool, stream));
    EXPECT_OK(d.cuMemsetD8Async(x, 0, 256, other));
    EXPECT_RESULT(CUDA_ERROR_ILLEGAL_ADDRESS, d.cuStreamSynchronize(other));
    open = true;
    EXPECT(std::strstr(more.lowrankEmulatorLastReport(), "does not follow") != nullptr);
  }
}

void FreeingWaitsForTheDevice() {
  Fixture f;
  auto* log = f.Memory<uint32_t>(64);
  EXPECT_OK(Launch(f.Kernel("test_append_kernel"), f.Stream(), AppendParams{log, 1, 40000}));
  EXPECT_OK(d.cuMemFree_v2(Pointer(log)));  // the kernel still writes to it
  EXPECT_OK(more.cuCtxSynchronize());
}

void NothingOutlivesItsContext() {
  CUdeviceptr left = 0;
  {
    Fixture f;
    EXPECT_OK(d.cuMemAlloc_v2(&left, 256));
  }
  Fixture f;
  EXPECT_OK(Launch(f.Kernel("test_wild_kernel"), nullptr,
                   WildParams{reinterpret_cast<uint32_t*>(left), 0}));
  EXPECT(more.cuCtxSynchronize() != CUDA_SUCCESS);
}

void KernelsMayUsePinnedMemory() {
  for (const int64_t index : {15, 16}) {
    Fixture f;
    void* raw = nullptr;
    EXPECT_OK(d.cuMemHostAlloc(&raw, 64, 0));
    auto* pinned = static_cast<uint32_t*>(raw);
    EXPECT_OK(Launch(f.Kernel("test_wild_kernel"), nullptr, WildParams{pinned, index}));
    const CUresult result = more.cuCtxSynchronize();
    EXPECT(index == 15 ? result == CUDA_SUCCESS : result != CUDA_SUCCESS);
    EXPECT(pinned[15] == (index == 15 ? 1u : 0u));
    d.cuMemFreeHost(pinned);
  }
}

void MemoryOfTheCallerIsPinned() {
  Fixture f;
  std::vector<uint32_t> own(1024);
  void* const begin = own.data();
  const size_t bytes = own.size() * sizeof(uint32_t);
  CUdeviceptr device = 0;
  EXPECT_RESULT(CUDA_ERROR_INVALID_VALUE, d.cuMemHostGetDevicePointer_v2(&device, begin, 0));
  EXPECT_RESULT(CUDA_ERROR_INVALID_VALUE, d.cuMemHostRegister_v2(nullptr, bytes, 0));
  EXPECT_OK(d.cuMemHostRegister_v2(begin, bytes, 0));
  constexpr CUresult kAlready = 712, kNot = 713;
  EXPECT_RESULT(kAlready, d.cuMemHostRegister_v2(own.data() + 100, 16, 0));
  EXPECT_OK(d.cuMemHostGetDevicePointer_v2(&device, begin, 0));
  EXPECT_OK(Launch(f.Kernel("test_wild_kernel"), nullptr,
                   WildParams{reinterpret_cast<uint32_t*>(device), 1023}));
  EXPECT_OK(more.cuCtxSynchronize());
  EXPECT(own[1023] == 1);
  EXPECT_RESULT(CUDA_ERROR_INVALID_VALUE, d.cuMemFreeHost(begin));  // not the driver's to free
  EXPECT_RESULT(kNot, d.cuMemHostUnregister(own.data() + 1));
  EXPECT_OK(d.cuMemHostUnregister(begin));
  EXPECT_RESULT(kNot, d.cuMemHostUnregister(begin));
}

void GraphsOwnTheirMemory() {
  Fixture f;
  const CUstream stream = f.Stream();
  auto* y = f.Memory<float>(64);
  CUdeviceptr x = 0;
  EXPECT_OK(d.cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
  EXPECT_OK(d.cuMemAllocFromPoolAsync(&x, 256, f.pool, stream));
  EXPECT_OK(d.cuMemsetD8Async(x, 0, 256, stream));
  const AddParams params{reinterpret_cast<float*>(x), y, 64, 2.5f};
  EXPECT_OK(Launch(f.Kernel("test_add_kernel"), stream, params, 1, 64));
  EXPECT_OK(d.cuMemFreeAsync(x, stream));
  CUgraph graph = nullptr;
  CUgraphExec exec = nullptr;
  EXPECT_OK(d.cuStreamEndCapture(stream, &graph));
  EXPECT_OK(d.cuGraphInstantiateWithFlags(&exec, graph, 0));
  for (int run = 0; run < 2; ++run) {
    EXPECT_OK(d.cuMemsetD8Async(Pointer(y), 0, 256, stream));
    EXPECT_OK(d.cuGraphLaunch(exec, stream));
    EXPECT_OK(d.cuStreamSynchronize(stream));
    EXPECT(ReadBack(y, 64)[63] == 2.5f);
  }
  EXPECT_OK(d.cuGraphExecDestroy(exec));
  EXPECT_OK(d.cuGraphDestroy(graph));
  uint64_t used = 1;
  EXPECT_OK(more.cuMemPoolGetAttribute(f.pool, CU_MEMPOOL_ATTR_USED_MEM_CURRENT, &used));
  EXPECT(used == 0);
}

}  // namespace

std::vector<Case> MemoryCases() {
  return {
      {"allocate and free", AllocateAndFree},
      {"pools keep what is freed", PoolsKeepWhatIsFreed},
      {"memory runs out", MemoryRunsOut},
      {"copies go both ways", CopiesGoBothWays},
      {"pinned memory is read late", PinnedMemoryIsReadLate},
      {"pointers are known", PointersAreKnown},
      {"freed memory is closed", FreedMemoryIsClosed},
      {"freeing waits for the device", FreeingWaitsForTheDevice},
      {"nothing outlives its context", NothingOutlivesItsContext},
      {"kernels may use pinned memory", KernelsMayUsePinnedMemory},
      {"memory of the caller is pinned", MemoryOfTheCallerIsPinned},
      {"graphs own their memory", GraphsOwnTheirMemory},
  };
}

}  // namespace lowrank::test
