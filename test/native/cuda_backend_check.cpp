/// The CUDA backend over the emulator, below JavaScript: streams and pointers of the caller's,
/// graph capture, the order of memory across streams, workspaces, cancellation, several threads.
///
///   cuda_backend_check [path/to/lowrank-emulator.so]
#include <atomic>
#include <thread>

#include "test/native/cuda_backend_fixture.h"

namespace lowrank {
namespace {

/// As a trainer with its own memory and stream would: pointers in, ops on its stream, its own work
/// behind them, no copy.
void CallerStreamAndPointers() {
  constexpr size_t kCount = 1000;
  const cuda::CUstream stream = NewStream();
  cuda::CUdeviceptr x = 0;
  cuda::CUdeviceptr y = 0;
  Call(Driver().cuMemAlloc_v2(&x, kCount * sizeof(float)), "cuMemAlloc");
  Call(Driver().cuMemAlloc_v2(&y, kCount * sizeof(float)), "cuMemAlloc");
  const std::vector<float> values = Ramp(kCount, 5);
  std::vector<float> result(kCount);
  const int64_t live = g_backend->Memory().live_bytes;
  {
    bool released = false;
    const auto wrap = [&](cuda::CUdeviceptr pointer, StoragePtr* storage) {
      return g_backend->Wrap(
          reinterpret_cast<void*>(static_cast<uintptr_t>(pointer)), kCount * sizeof(float), false,
          [&released] { released = true; }, storage);
    };
    StoragePtr from;
    StoragePtr to;
    ExpectOk(wrap(x, &from), "wrap x");
    ExpectOk(wrap(y, &to), "wrap y");
    Expect(from->data() == reinterpret_cast<void*>(static_cast<uintptr_t>(x)), "no copy");
    Expect(g_backend->Memory().live_bytes == live, "a wrapped pointer is not counted");
    ExpectOk(g_backend->UseStream(stream, g_cancel), "useStream");
    Call(Driver().cuMemcpyHtoDAsync_v2(x, values.data(), kCount * sizeof(float), stream),
         "the caller's copy");
    ExpectOk(Copy(from, to), "copy");
    ExpectOk(Flush(), "flush");
    Call(Driver().cuMemcpyDtoHAsync_v2(result.data(), y, kCount * sizeof(float), stream),
         "the caller's copy");
    Call(Driver().cuStreamSynchronize(stream), "cuStreamSynchronize");
    Expect(result == values, "work behind ours on the caller's stream sees our result");
    ExpectOk(g_backend->UseStream(nullptr, g_cancel), "useStream(null)");
    from.reset();
    to.reset();
    Expect(released, "the caller is told that its memory is free");
  }
  StoragePtr refused;
  int on_stack = 0;
  Expect(g_backend->Wrap(&on_stack, 4, false, nullptr, &refused).code() == Code::kValue,
         "a pointer that the driver does not know is refused");
  ExpectOk(Synchronize(), "synchronize");
  Call(Driver().cuMemFree_v2(x), "cuMemFree");
  Call(Driver().cuMemFree_v2(y), "cuMemFree");
  Call(Driver().cuStreamDestroy_v2(stream), "cuStreamDestroy");
}

/// Random ops on our stream and two of the caller's, with operands that are freed at once: every
/// value must still be the one that the order of the calls gives.
void OrderAcrossStreams() {
  constexpr size_t kCount = 3000;
  cuda::CUstream streams[] = {nullptr, NewStream(), NewStream()};
  unsigned state = 12345;
  const auto next = [&state](unsigned bound) {
    state = state * 1664525u + 1013904223u;
    return (state >> 16) % bound;
  };
  StoragePtr held = New(kCount * sizeof(float));
  Fill(held, Ramp(kCount, 0));
  float expected = 0;
  for (int step = 0; step < 400; ++step) {
    switch (next(5)) {
      case 0:
        ExpectOk(g_backend->UseStream(streams[next(3)], g_cancel), "useStream");
        break;
      case 1: {
        // The old memory goes while the copy of it may not even have begun.
        const StoragePtr fresh = New(kCount * sizeof(float));
        ExpectOk(Copy(held, fresh), "copy");
        held = fresh;
        break;
      }
      case 2: {
        expected = static_cast<float>(step);
        Fill(held, Ramp(kCount, expected));
        break;
      }
      case 3: {
        // Another stream must see what the last one was told to write.
        expected = static_cast<float>(step);
        Fill(held, Ramp(kCount, expected));
        ExpectOk(g_backend->UseStream(streams[next(3)], g_cancel), "useStream");
        std::vector<float> values;
        ExpectOk(ReadInto(held, &values), "read");
        Expect(values == Ramp(kCount, expected),
               "step " + std::to_string(step) + " after a switch");
        break;
      }
      default: {
        // Memory that is taken and given back at once tempts the allocator to reuse it.
        const StoragePtr noise = New(kCount * sizeof(float));
        Fill(noise, Ramp(kCount, -1000));
        break;
      }
    }
    if (step % 20 != 19) continue;
    std::vector<float> values;
    ExpectOk(ReadInto(held, &values), "read");
    Expect(values == Ramp(kCount, expected), "step " + std::to_string(step) + " across streams");
  }
  ExpectOk(g_backend->UseStream(nullptr, g_cancel), "useStream(null)");
  held.reset();
  ExpectOk(Synchronize(), "synchronize");
  Expect(g_backend->Memory().live_bytes == 0, "nothing is left");
  for (const cuda::CUstream stream : streams) {
    if (stream != nullptr) Call(Driver().cuStreamDestroy_v2(stream), "cuStreamDestroy");
  }
}

/// Ops are written into a graph, and run when the graph does.
void Capture() {
  constexpr size_t kCount = 500;
  const cuda::CUstream stream = NewStream();
  const StoragePtr x = New(kCount * sizeof(float));
  const StoragePtr middle = New(kCount * sizeof(float));
  const StoragePtr y = New(kCount * sizeof(float));
  Fill(x, Ramp(kCount, 1));
  Fill(y, Ramp(kCount, -7));
  ExpectOk(Synchronize(), "synchronize");

  Call(Driver().cuStreamBeginCapture_v2(stream, cuda::CU_STREAM_CAPTURE_MODE_RELAXED),
       "cuStreamBeginCapture");
  ExpectOk(g_backend->UseStream(stream, g_cancel), "useStream");
  ExpectOk(Copy(x, middle), "copy in a capture");
  ExpectOk(Copy(middle, y), "copy in a capture");
  ExpectOk(Flush(), "flush");
  std::vector<float> values;
  Expect(ReadInto(y, &values).code() == Code::kUnsupported, "nothing is read during a capture");
  Expect(Synchronize().code() == Code::kUnsupported, "nothing is waited for during a capture");
  cuda::CUgraph graph = nullptr;
  Call(Driver().cuStreamEndCapture(stream, &graph), "cuStreamEndCapture");
  ExpectOk(g_backend->UseStream(nullptr, g_cancel), "useStream(null)");

  ExpectOk(ReadInto(y, &values), "read");
  Expect(values == Ramp(kCount, -7), "a captured op has not run");
  cuda::CUgraphExec exec = nullptr;
  Call(Driver().cuGraphInstantiateWithFlags(&exec, graph, 0), "cuGraphInstantiate");
  for (const float from : {1.0f, 40.0f}) {
    Fill(x, Ramp(kCount, from));
    ExpectOk(Synchronize(), "synchronize");
    Call(Driver().cuGraphLaunch(exec, stream), "cuGraphLaunch");
    Call(Driver().cuStreamSynchronize(stream), "cuStreamSynchronize");
    ExpectOk(ReadInto(y, &values), "read");
    Expect(values == Ramp(kCount, from), "the graph runs on what its operands hold now");
  }
  Call(Driver().cuGraphExecDestroy(exec), "cuGraphExecDestroy");
  Call(Driver().cuGraphDestroy(graph), "cuGraphDestroy");
  Call(Driver().cuStreamDestroy_v2(stream), "cuStreamDestroy");
}

/// Somebody else's capture, in the strictest mode, goes on while this device works: no call of ours
/// spoils it, neither of the device's threads nor of the caller's.
void CaptureElsewhere() {
  constexpr size_t kCount = 500;
  const cuda::CUstream stream = NewStream();
  Call(Driver().cuStreamBeginCapture_v2(stream, cuda::CU_STREAM_CAPTURE_MODE_GLOBAL),
       "cuStreamBeginCapture");
  const StoragePtr x = New(kCount * sizeof(float));
  StoragePtr y;
  std::vector<float> memory(kCount);
  ExpectOk(g_backend->Wrap(memory.data(), kCount * sizeof(float), true, nullptr, &y), "wrap");
  if (y == nullptr) y = New(kCount * sizeof(float));
  Fill(x, Ramp(kCount, 3));
  ExpectOk(Copy(x, y), "copy beside a capture");
  std::vector<float> values;
  ExpectOk(ReadInto(y, &values), "read beside a capture");
  Expect(values == Ramp(kCount, 3), "values beside a capture");
  ExpectOk(Synchronize(), "synchronize beside a capture");
  y.reset();
  cuda::CUstreamCaptureMode mode = cuda::CU_STREAM_CAPTURE_MODE_GLOBAL;
  Call(Driver().cuThreadExchangeStreamCaptureMode(&mode), "cuThreadExchangeStreamCaptureMode");
  Expect(mode == cuda::CU_STREAM_CAPTURE_MODE_GLOBAL, "the caller's thread keeps its mode");
  cuda::CUgraph graph = nullptr;
  Call(Driver().cuStreamEndCapture(stream, &graph), "cuStreamEndCapture of somebody else");
  if (graph != nullptr) Call(Driver().cuGraphDestroy(graph), "cuGraphDestroy");
  Call(Driver().cuStreamDestroy_v2(stream), "cuStreamDestroy");
}

struct Quantised {
  std::vector<StoragePtr> parts;
  QuantView view;
};

Quantised NewWeight(int64_t rows, int64_t cols) {
  Quantised w;
  w.view.format = FindFormat("nf4");
  w.view.rows = rows;
  w.view.cols = cols;
  w.view.blocksize = 64;
  const auto part = [&w](size_t bytes) {
    w.parts.push_back(New(bytes));
    return w.parts.back()->data();
  };
  w.view.codes = static_cast<uint8_t*>(part(w.view.code_bytes()));
  w.view.absmax = static_cast<float*>(part(static_cast<size_t>(w.view.blocks()) * sizeof(float)));
  const StoragePtr codebook = New(16 * sizeof(float));
  Fill(codebook, std::vector<float>(w.view.format->codebook, w.view.format->codebook + 16));
  w.parts.push_back(codebook);
  w.view.codebook = static_cast<const float*>(codebook->data());
  return w;
}

Status Quantize(const StoragePtr& values, const Quantised& w) {
  TensorView view = View(values);
  view.rows = w.view.rows;
  view.cols = w.view.cols;
  return g_backend->Enqueue(QuantizeOp{view, w.view}, OpRefs{{values}, w.parts, g_cancel});
}

/// An op with intermediate results: not in a capture before they have room, in one after that.
void WorkspaceInACapture() {
  const cuda::CUstream stream = NewStream();
  const StoragePtr values = New(128 * sizeof(float));
  Fill(values, Ramp(128, 1));
  for (const bool reserved : {false, true}) {
    if (reserved) {
      // A workspace is a stream's own.
      ExpectOk(g_backend->UseStream(stream, g_cancel), "useStream");
      Wait wait;
      ExpectOk(g_backend->ReserveWorkspace(1 << 20, wait.Done(), g_cancel), "reserve");
      ExpectOk(wait.Get(), "reserve");
      Expect(g_backend->WorkspaceBytes() >= 1 << 20, "the reserved bytes are told");
      ExpectOk(Synchronize(), "synchronize");
    }
    Call(Driver().cuStreamBeginCapture_v2(stream, cuda::CU_STREAM_CAPTURE_MODE_RELAXED),
         "cuStreamBeginCapture");
    ExpectOk(g_backend->UseStream(stream, g_cancel), "useStream");
    const Quantised w = NewWeight(2, 64);
    ExpectOk(Quantize(values, w), "quantize");
    ExpectOk(Flush(), "flush");
    Expect((w.parts[0]->poison().code() == Code::kUnsupported) == !reserved,
           reserved ? "with workspace the op is captured: " + w.parts[0]->poison().message()
                    : "without workspace the op is refused");
    cuda::CUgraph graph = nullptr;
    Call(Driver().cuStreamEndCapture(stream, &graph), "cuStreamEndCapture");
    ExpectOk(g_backend->UseStream(nullptr, g_cancel), "useStream(null)");
    Call(Driver().cuGraphDestroy(graph), "cuGraphDestroy");
  }
  ExpectOk(Synchronize(), "synchronize");
  Call(Driver().cuStreamDestroy_v2(stream), "cuStreamDestroy");
}

/// What only the kernel can refuse reaches every reader, also through further ops, and no other.
void VerdictsReachReaders() {
  std::vector<float> values = Ramp(128, 1);
  const StoragePtr good = New(128 * sizeof(float));
  const StoragePtr bad = New(128 * sizeof(float));
  Fill(good, values);
  values[77] = std::strtof("nan", nullptr);
  Fill(bad, values);
  for (const bool is_bad : {true, false, true}) {
    const Quantised w = NewWeight(2, 64);
    const StoragePtr back = New(128 * sizeof(float));
    const StoragePtr copy = New(128 * sizeof(float));
    ExpectOk(Quantize(is_bad ? bad : good, w), "quantize");
    TensorView view = View(back);
    view.rows = 2;
    view.cols = 64;
    ExpectOk(g_backend->Enqueue(DequantizeOp{w.view, view}, OpRefs{w.parts, {back}, g_cancel}),
             "dequantize");
    ExpectOk(Copy(back, copy), "copy");
    std::vector<float> result;
    for (const StoragePtr& storage : {copy, back, w.parts[0]}) {
      const Status status = ReadInto(storage, &result);
      Expect(status.code() == (is_bad ? Code::kNonFinite : Code::kOk),
             "the verdict of a quantisation: " + status.message());
      Expect(!is_bad || status.message().find("w[77]") != std::string::npos, status.message());
    }
    Fill(copy, Ramp(128, 3));
    ExpectOk(ReadInto(copy, &result), "written anew, it is good again");
  }
}

/// A verdict may be settled between a reader's poison() and its OpenVerdicts(): a bad one is kept.
void VerdictsSettledMeanwhile() {
  const StoragePtr storage = New(sizeof(float));
  const auto good = std::make_shared<Verdict>();
  const auto bad = std::make_shared<Verdict>();
  const auto open = std::make_shared<Verdict>();
  storage->DependOn({good, bad, open});
  ExpectOk(storage->poison(), "before any is settled");
  good->Settle(Status());
  bad->Settle(Status(Code::kNonFinite, "planted"));
  const std::vector<VerdictPtr> kept = storage->OpenVerdicts();
  Expect(kept.size() == 2 && kept[0] == bad && kept[1] == open, "a bad and an open verdict stay");
  open->Settle(Status());
}

/// Queued work of a token that is dropped is told so at once, and leaves nothing behind.
void DroppedWork() {
  const CancelPtr token = std::make_shared<CancelToken>();
  std::atomic<int> cancelled{0};
  std::atomic<int> finished{0};
  {
    const StoragePtr x = New(4096 * sizeof(float));
    Fill(x, Ramp(4096, 0));
    for (int i = 0; i < 50; ++i) {
      const StoragePtr y = New(4096 * sizeof(float));
      ExpectOk(g_backend->Enqueue(CastOp{View(x), View(y)}, OpRefs{{x}, {y}, token}), "enqueue");
      ExpectOk(g_backend->Read(
                   y, [](const void*) { return Status(); },
                   [&](const Status& status) {
                     (status.code() == Code::kCancelled ? cancelled : finished).fetch_add(1);
                   },
                   token),
               "read");
    }
  }
  token->Cancel();
  g_backend->DropQueued(token.get());
  token->WaitIdle();
  Expect(cancelled + finished == 50, "every reader was told once");
  ExpectOk(Synchronize(), "synchronize");
  Expect(g_backend->Memory().live_bytes == 0, "dropped work frees its operands");
}

/// Several threads share the device as workers do.
void ManyThreads() {
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([t, &wrong] {
      for (int round = 0; round < 20; ++round) {
        const float from = static_cast<float>(100 * t + round);
        const StoragePtr x = New(700 * sizeof(float));
        const StoragePtr y = New(700 * sizeof(float));
        Fill(x, Ramp(700, from));
        ExpectOk(Copy(x, y), "copy");
        std::vector<float> values;
        if (!ReadInto(y, &values).ok() || values != Ramp(700, from)) wrong.fetch_add(1);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  Expect(wrong == 0, "four threads read what each of them wrote");
}

/// Host memory of the caller's is read and written in place, also where arrays share a page.
void HostMemory() {
  std::vector<float> memory(4096 + 64, 0.0f);
  float* const first = memory.data() + 3;
  float* const second = memory.data() + 3 + 40;
  for (int i = 0; i < 40; ++i) first[i] = static_cast<float>(i);
  std::atomic<int> released{0};
  StoragePtr x;
  StoragePtr y;
  const auto release = [&released] { released.fetch_add(1); };
  ExpectOk(g_backend->Wrap(first, 40 * sizeof(float), true, release, &x), "wrap host memory");
  ExpectOk(g_backend->Wrap(second, 4000 * sizeof(float), true, release, &y), "wrap a neighbour");
  const StoragePtr narrow = New(40 * sizeof(float));
  ExpectOk(Copy(x, narrow), "copy from host memory");
  TensorView view = View(y);
  view.cols = 40;
  ExpectOk(g_backend->Enqueue(CastOp{View(narrow), view}, OpRefs{{narrow}, {y}, g_cancel}),
           "copy to host memory");
  ExpectOk(Synchronize(), "synchronize");
  Expect(std::memcmp(first, second, 40 * sizeof(float)) == 0, "written in place");
  ExpectOk(Copy(x, narrow), "one more reader");
  x.reset();
  ExpectOk(Synchronize(), "synchronize");
  Expect(released == 1, "one is released once the device is done");
  ExpectOk(g_backend->Enqueue(CastOp{view, View(narrow)}, OpRefs{{y}, {narrow}, g_cancel}),
           "the other keeps the page that both lay in");
  ExpectOk(Synchronize(), "synchronize");
  y.reset();
  ExpectOk(Synchronize(), "synchronize");
  Expect(released == 2, "both are released once the device is done");
  ExpectOk(g_backend->Wrap(first, 40 * sizeof(float), true, nullptr, &x), "wrap it again");
}

}  // namespace

int CheckBackend(int argc, char** argv) {
  if (argc > 1) setenv("LOWRANK_EMULATOR", argv[1], 1);
  std::string path;
  Status status = cuda::EmulatorPath(&path);
  if (status.ok()) status = cuda::OpenEmulator(path, &g_library);
  if (status.ok()) status = FindBackend("cuda-emulated", &g_backend);
  if (!status.ok()) {
    std::printf("FAILED %s\n", status.message().c_str());
    return 1;
  }
  cuda::CUcontext context = nullptr;
  Call(Driver().cuDevicePrimaryCtxRetain(&context, 0), "cuDevicePrimaryCtxRetain");
  Call(Driver().cuCtxSetCurrent(context), "cuCtxSetCurrent");
  CallerStreamAndPointers();
  OrderAcrossStreams();
  Capture();
  CaptureElsewhere();
  WorkspaceInACapture();
  GroupedInACapture();
  OptimizerInACapture();
  VerdictsReachReaders();
  VerdictsSettledMeanwhile();
  DroppedWork();
  ManyThreads();
  HostMemory();
  ExpectOk(Synchronize(), "synchronize");
  Expect(g_backend->Memory().live_bytes == 0 && g_backend->Memory().live_tensors == 0,
         "no byte is left");
  std::printf(g_failures == 0 ? "the CUDA backend holds\n" : "%d failures\n", g_failures);
  return g_failures == 0 ? 0 : 1;
}

}  // namespace lowrank

int main(int argc, char** argv) { return lowrank::CheckBackend(argc, argv); }
