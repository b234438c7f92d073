// Streams, events, captures and graphs of the emulated driver.
#include <thread>

#include "test/native/emulated_driver_fixture.h"

namespace lowrank::test {
namespace {

constexpr CUresult kNotPermitted = 800;
constexpr CUresult kIllegalState = 401;

std::vector<uint32_t> ReadLog(const uint32_t* log) {
  std::vector<uint32_t> all = ReadBack(log, 64);
  return {all.begin() + 1, all.begin() + 1 + all[0]};
}

void InOrderWithinAStream() {
  Fixture f;
  const CUstream stream = f.Stream();
  auto* log = f.Memory<uint32_t>(64);
  const CUfunction append = f.Kernel("test_append_kernel");
  // Slower first: any overlap or exchange shows.
  for (uint32_t i = 0; i < 8; ++i) {
    EXPECT_OK(Launch(append, stream, AppendParams{log, i, 4000 - 500 * i}));
  }
  EXPECT_RESULT(CUDA_ERROR_NOT_READY, d.cuStreamQuery(stream));
  EXPECT_OK(d.cuStreamSynchronize(stream));
  EXPECT_OK(d.cuStreamQuery(stream));
  EXPECT((ReadLog(log) == std::vector<uint32_t>{0, 1, 2, 3, 4, 5, 6, 7}));
  EXPECT_OK(d.cuStreamDestroy_v2(stream));
  EXPECT_RESULT(CUDA_ERROR_INVALID_HANDLE, d.cuStreamDestroy_v2(stream));
  EXPECT_RESULT(CUDA_ERROR_INVALID_HANDLE, d.cuStreamSynchronize(stream));
}

struct Gate {
  volatile bool open = false;
  static void WaitFor(void* gate) {
    while (!static_cast<Gate*>(gate)->open) usleep(200);
  }
};

void StreamsAreIndependent() {
  Fixture f;
  const CUstream held = f.Stream();
  const CUstream free_stream = f.Stream();
  Gate gate;
  auto* log = f.Memory<uint32_t>(64);
  const CUfunction append = f.Kernel("test_append_kernel");
  EXPECT_OK(more.cuLaunchHostFunc(held, Gate::WaitFor, &gate));
  EXPECT_OK(Launch(append, held, AppendParams{log, 1, 0}));
  EXPECT_OK(Launch(append, free_stream, AppendParams{log, 2, 0}));
  EXPECT_OK(d.cuStreamSynchronize(free_stream));  // would hang if the streams were one
  EXPECT_RESULT(CUDA_ERROR_NOT_READY, d.cuStreamQuery(held));
  gate.open = true;
  EXPECT_OK(d.cuStreamSynchronize(held));
  EXPECT((ReadLog(log) == std::vector<uint32_t>{2, 1}));
}

void EventsOrderStreams() {
  Fixture f;
  const CUstream first = f.Stream();
  const CUstream second = f.Stream();
  const CUevent event = f.Event();
  auto* log = f.Memory<uint32_t>(64);
  const CUfunction append = f.Kernel("test_append_kernel");
  // An event that was never recorded is no reason to wait, and is complete.
  EXPECT_OK(d.cuStreamWaitEvent(second, event, 0));
  EXPECT_OK(d.cuEventQuery(event));
  EXPECT_OK(d.cuEventSynchronize(event));
  Gate gate;
  EXPECT_OK(more.cuLaunchHostFunc(first, Gate::WaitFor, &gate));
  EXPECT_OK(Launch(append, first, AppendParams{log, 1, 0}));
  EXPECT_OK(d.cuEventRecord(event, first));
  EXPECT_RESULT(CUDA_ERROR_NOT_READY, d.cuEventQuery(event));
  EXPECT_OK(d.cuStreamWaitEvent(second, event, 0));
  EXPECT_OK(Launch(append, second, AppendParams{log, 2, 0}));
  // What is recorded later does not change what `second` waits for.
  EXPECT_OK(d.cuEventRecord(event, second));
  usleep(20000);
  EXPECT_RESULT(CUDA_ERROR_NOT_READY, d.cuStreamQuery(second));
  gate.open = true;
  EXPECT_OK(d.cuEventSynchronize(event));
  EXPECT((ReadLog(log) == std::vector<uint32_t>{1, 2}));
  EXPECT_RESULT(CUDA_ERROR_INVALID_VALUE, d.cuStreamWaitEvent(second, event, 5));
  EXPECT_OK(d.cuEventDestroy_v2(event));
  EXPECT_RESULT(CUDA_ERROR_INVALID_HANDLE, d.cuEventRecord(event, first));
  EXPECT_RESULT(CUDA_ERROR_INVALID_HANDLE, d.cuStreamWaitEvent(second, event, 0));
}

void EventsTellTime() {
  Fixture f;
  const CUstream stream = f.Stream();
  const CUevent start = f.Event();
  const CUevent end = f.Event();
  const CUevent untimed = f.Event(CU_EVENT_DISABLE_TIMING);
  float ms = -1;
  EXPECT_RESULT(CUDA_ERROR_INVALID_HANDLE, d.cuEventElapsedTime(&ms, start, end));
  auto* log = f.Memory<uint32_t>(64);
  EXPECT_OK(d.cuEventRecord(start, stream));
  EXPECT_OK(Launch(f.Kernel("test_append_kernel"), stream, AppendParams{log, 1, 30000}));
  EXPECT_OK(d.cuEventRecord(end, stream));
  EXPECT_OK(d.cuEventRecord(untimed, stream));
  EXPECT_RESULT(CUDA_ERROR_NOT_READY, d.cuEventElapsedTime(&ms, start, end));
  EXPECT_OK(d.cuEventSynchronize(untimed));
  EXPECT_OK(d.cuEventElapsedTime(&ms, start, end));
  EXPECT(ms >= 30 && ms < 10000);
  EXPECT_RESULT(CUDA_ERROR_INVALID_HANDLE, d.cuEventElapsedTime(&ms, start, untimed));
  EXPECT_RESULT(CUDA_ERROR_INVALID_VALUE, d.cuEventElapsedTime(nullptr, start, end));
}

void TheNullStreamWaitsForBlockingStreams() {
  Fixture f;
  const CUstream blocking = f.Stream(0);
  const CUstream other = f.Stream(CU_STREAM_NON_BLOCKING);
  auto* log = f.Memory<uint32_t>(64);
  const CUfunction append = f.Kernel("test_append_kernel");
  Gate gate;
  EXPECT_OK(more.cuLaunchHostFunc(blocking, Gate::WaitFor, &gate));
  EXPECT_OK(Launch(append, blocking, AppendParams{log, 1, 3000}));
  EXPECT_OK(Launch(append, nullptr, AppendParams{log, 2, 2000}));
  EXPECT_OK(Launch(append, blocking, AppendParams{log, 3, 0}));
  EXPECT_OK(Launch(append, reinterpret_cast<CUstream>(uintptr_t{1}), AppendParams{log, 4, 0}));
  EXPECT_OK(Launch(append, other, AppendParams{log, 9, 0}));
  EXPECT_OK(d.cuStreamSynchronize(other));
  gate.open = true;
  EXPECT_OK(more.cuCtxSynchronize());
  EXPECT((ReadLog(log) == std::vector<uint32_t>{9, 1, 2, 3, 4}));
}

void BlockingStreamsWaitForTheNullStream() {
  Fixture f;
  const CUstream blocking = f.Stream(0);
  const CUstream other = f.Stream(CU_STREAM_NON_BLOCKING);
  auto* log = f.Memory<uint32_t>(64);
  const CUfunction append = f.Kernel("test_append_kernel");
  Gate null_gate;
  Gate other_gate;
  // The null stream does not wait for a non-blocking one.
  EXPECT_OK(more.cuLaunchHostFunc(other, Gate::WaitFor, &other_gate));
  EXPECT_OK(Launch(append, nullptr, AppendParams{log, 1, 0}));
  EXPECT_OK(d.cuStreamSynchronize(nullptr));
  EXPECT_RESULT(CUDA_ERROR_NOT_READY, d.cuStreamQuery(other));
  other_gate.open = true;
  // But a blocking one for it.
  EXPECT_OK(more.cuLaunchHostFunc(nullptr, Gate::WaitFor, &null_gate));
  EXPECT_OK(Launch(append, blocking, AppendParams{log, 2, 0}));
  usleep(30000);
  EXPECT_RESULT(CUDA_ERROR_NOT_READY, d.cuStreamQuery(blocking));
  null_gate.open = true;
  EXPECT_OK(d.cuStreamSynchronize(blocking));
  EXPECT((ReadLog(log) == std::vector<uint32_t>{1, 2}));
}

void EachThreadHasItsOwnStream() {
  Fixture f;
  auto* const own = reinterpret_cast<CUstream>(uintptr_t{2});
  auto* log = f.Memory<uint32_t>(64);
  const CUfunction append = f.Kernel("test_append_kernel");
  EXPECT_OK(Launch(append, own, AppendParams{log, 1, 0}));
  EXPECT_OK(d.cuStreamSynchronize(own));
  std::thread([&] {
    EXPECT_RESULT(CUDA_ERROR_INVALID_CONTEXT, d.cuStreamSynchronize(own));  // none is current here
    EXPECT_OK(d.cuCtxSetCurrent(f.context));
    EXPECT_OK(Launch(append, own, AppendParams{log, 2, 0}));
    EXPECT_OK(d.cuStreamSynchronize(own));
  }).join();
  EXPECT((ReadLog(log) == std::vector<uint32_t>{1, 2}));
}

void HostFunctionsMayNotCall() {
  Fixture f;
  struct State {
    CUresult inside = -1;
    CUstream stream = nullptr;
  } state;
  state.stream = f.Stream();
  EXPECT_OK(more.cuLaunchHostFunc(
      state.stream,
      [](void* raw) {
        auto* s = static_cast<State*>(raw);
        s->inside = d.cuStreamQuery(s->stream);
      },
      &state));
  EXPECT_OK(d.cuStreamSynchronize(state.stream));
  EXPECT(state.inside == kNotPermitted);
  EXPECT_RESULT(CUDA_ERROR_INVALID_VALUE, more.cuLaunchHostFunc(state.stream, nullptr, nullptr));
}

void LateStreamsWaitForDemand() {
  SetOption("streams", "late");
  Fixture f;
  SetOption("streams", "eager");
  const CUstream stream = f.Stream();
  auto* log = f.Memory<uint32_t>(64);
  const CUfunction append = f.Kernel("test_append_kernel");
  EXPECT_OK(Launch(append, stream, AppendParams{log, 1, 0}));
  usleep(2000);
  // Not begun, and looked at without the driver: nobody has asked for it.
  EXPECT(log[0] == 0);
  EXPECT_OK(d.cuStreamSynchronize(stream));
  EXPECT(log[0] == 1);
  // A program that only polls gets there too.
  EXPECT_OK(Launch(append, stream, AppendParams{log, 2, 0}));
  for (int i = 0; i < 1000 && d.cuStreamQuery(stream) == CUDA_ERROR_NOT_READY; ++i) usleep(1000);
  EXPECT_OK(d.cuStreamQuery(stream));
  // And one that waits for its memory to change.
  EXPECT_OK(Launch(append, stream, AppendParams{log, 3, 0}));
  const volatile uint32_t* count = log;
  for (int i = 0; i < 2000 && *count < 3; ++i) usleep(1000);
  EXPECT((ReadLog(log) == std::vector<uint32_t>{1, 2, 3}));
}

void GraphsReplay() {
  Fixture f;
  const CUstream stream = f.Stream();
  const CUstream side = f.Stream();
  const CUevent fork = f.Event();
  const CUevent join = f.Event();
  auto* log = f.Memory<uint32_t>(64);
  const CUfunction append = f.Kernel("test_append_kernel");
  EXPECT_OK(d.cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
  EXPECT_RESULT(kIllegalState,
                d.cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
  EXPECT_OK(d.cuMemsetD8Async(Pointer(log), 0, 4, stream));
  EXPECT_OK(Launch(append, stream, AppendParams{log, 1, 0}));
  EXPECT_OK(d.cuEventRecord(fork, stream));
  EXPECT_OK(d.cuStreamWaitEvent(side, fork, 0));
  CUstreamCaptureStatus status = -1;
  EXPECT_OK(d.cuStreamIsCapturing(side, &status));
  EXPECT(status == CU_STREAM_CAPTURE_STATUS_ACTIVE);
  EXPECT_OK(Launch(append, side, AppendParams{log, 2, 0}));
  EXPECT_OK(d.cuEventRecord(join, side));
  EXPECT_OK(d.cuStreamWaitEvent(stream, join, 0));
  EXPECT_OK(Launch(append, stream, AppendParams{log, 3, 0}));
  CUgraph graph = nullptr;
  EXPECT_OK(d.cuStreamEndCapture(stream, &graph));
  EXPECT_OK(d.cuStreamIsCapturing(side, &status));
  EXPECT(status == CU_STREAM_CAPTURE_STATUS_NONE);
  // Nothing has run yet.
  EXPECT(ReadLog(log).empty());
  CUgraphExec exec = nullptr;
  EXPECT_RESULT(CUDA_ERROR_INVALID_VALUE, d.cuGraphInstantiateWithFlags(&exec, graph, 2));
  EXPECT_OK(d.cuGraphInstantiateWithFlags(&exec, graph, 0));
  EXPECT_OK(d.cuGraphDestroy(graph));
  EXPECT_RESULT(CUDA_ERROR_INVALID_HANDLE, d.cuGraphDestroy(graph));
  for (int run = 0; run < 3; ++run) {
    EXPECT_OK(d.cuGraphLaunch(exec, stream));
    EXPECT_OK(d.cuStreamSynchronize(stream));
    EXPECT((ReadLog(log) == std::vector<uint32_t>{1, 2, 3}));
  }
  EXPECT_OK(d.cuGraphExecDestroy(exec));
  EXPECT_RESULT(CUDA_ERROR_INVALID_HANDLE, d.cuGraphLaunch(exec, stream));
}

void GraphOrdersShowMissingEdges() {
  Fixture f;
  const CUstream stream = f.Stream();
  const CUstream side = f.Stream();
  const CUevent fork = f.Event();
  const CUevent join = f.Event();
  auto* log = f.Memory<uint32_t>(64);
  const CUfunction append = f.Kernel("test_append_kernel");
  EXPECT_OK(d.cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_RELAXED));
  EXPECT_OK(d.cuMemsetD8Async(Pointer(log), 0, 4, stream));
  EXPECT_OK(d.cuEventRecord(fork, stream));
  EXPECT_OK(d.cuStreamWaitEvent(side, fork, 0));
  EXPECT_OK(Launch(append, stream, AppendParams{log, 1, 0}));  // not ordered with
  EXPECT_OK(Launch(append, side, AppendParams{log, 2, 0}));    // this one
  EXPECT_OK(d.cuEventRecord(join, side));
  EXPECT_OK(d.cuStreamWaitEvent(stream, join, 0));
  CUgraph graph = nullptr;
  CUgraphExec exec = nullptr;
  EXPECT_OK(d.cuStreamEndCapture(stream, &graph));
  EXPECT_OK(d.cuGraphInstantiateWithFlags(&exec, graph, 0));
  EXPECT_OK(d.cuGraphLaunch(exec, stream));
  EXPECT_OK(d.cuStreamSynchronize(stream));
  EXPECT((ReadLog(log) == std::vector<uint32_t>{1, 2}));
  SetOption("order", "reverse");
  EXPECT_OK(d.cuGraphLaunch(exec, stream));
  EXPECT_OK(d.cuStreamSynchronize(stream));
  SetOption("order", "forward");
  EXPECT((ReadLog(log) == std::vector<uint32_t>{2, 1}));
}

void CapturesAreSpoilt() {
  Fixture f;
  const CUstream stream = f.Stream();
  const CUstream blocking = f.Stream(0);
  const CUstream side = f.Stream();
  const CUevent event = f.Event();
  auto* log = f.Memory<uint32_t>(64);
  CUgraph graph = nullptr;
  const auto begin = [&](CUstream s, CUstreamCaptureMode mode) {
    EXPECT_OK(d.cuStreamBeginCapture_v2(s, mode));
  };
  EXPECT_RESULT(kIllegalState, d.cuStreamEndCapture(stream, &graph));
  EXPECT_RESULT(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
                d.cuStreamBeginCapture_v2(nullptr, CU_STREAM_CAPTURE_MODE_GLOBAL));
  EXPECT_RESULT(CUDA_ERROR_INVALID_VALUE, d.cuStreamBeginCapture_v2(stream, 3));
  // A wait inside a capture.
  begin(stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
  EXPECT_RESULT(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, d.cuStreamSynchronize(stream));
  CUstreamCaptureStatus status = -1;
  EXPECT_OK(d.cuStreamIsCapturing(stream, &status));
  EXPECT(status == CU_STREAM_CAPTURE_STATUS_INVALIDATED);
  EXPECT_RESULT(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED,
                Launch(f.Kernel("test_append_kernel"), stream, AppendParams{log, 1, 0}));
  EXPECT_RESULT(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, d.cuStreamEndCapture(stream, &graph));
  EXPECT(graph == nullptr);
  // An allocation that may synchronise, from another thread: global captures forbid it.
  for (const auto& [mode, expected] :
       {std::pair{CU_STREAM_CAPTURE_MODE_GLOBAL, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED},
        std::pair{CU_STREAM_CAPTURE_MODE_THREAD_LOCAL, CUDA_SUCCESS},
        std::pair{CU_STREAM_CAPTURE_MODE_RELAXED, CUDA_SUCCESS}}) {
    begin(stream, mode);
    const CUresult wanted = expected;
    std::thread([&f, wanted] {
      CUdeviceptr pointer = 0;
      EXPECT_OK(d.cuCtxSetCurrent(f.context));
      EXPECT_RESULT(wanted, d.cuMemAlloc_v2(&pointer, 16));
    }).join();
    EXPECT_RESULT(expected == CUDA_SUCCESS ? CUDA_SUCCESS : CUDA_ERROR_STREAM_CAPTURE_INVALIDATED,
                  d.cuStreamEndCapture(stream, &graph));
  }
  // So it is with asking after work, and waiting for it, unless the thread says that it knows.
  EXPECT_OK(d.cuEventRecord(event, side));
  EXPECT_OK(d.cuStreamSynchronize(side));
  for (const auto& [mode, expected] :
       {std::pair{CU_STREAM_CAPTURE_MODE_GLOBAL, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED},
        std::pair{CU_STREAM_CAPTURE_MODE_THREAD_LOCAL, CUDA_SUCCESS},
        std::pair{CU_STREAM_CAPTURE_MODE_RELAXED, CUDA_SUCCESS}}) {
    const CUresult wanted = expected;
    const CUstreamCaptureMode of_thread = mode;
    for (int call = 0; call < 4; ++call) {
      begin(stream, CU_STREAM_CAPTURE_MODE_GLOBAL);
      std::thread([&, call, wanted, of_thread] {
        EXPECT_OK(d.cuCtxSetCurrent(f.context));
        CUstreamCaptureMode exchanged = of_thread;
        EXPECT_OK(d.cuThreadExchangeStreamCaptureMode(&exchanged));
        EXPECT(exchanged == CU_STREAM_CAPTURE_MODE_GLOBAL);
        EXPECT_RESULT(wanted, call == 0   ? d.cuEventQuery(event)
                              : call == 1 ? d.cuEventSynchronize(event)
                              : call == 2 ? d.cuStreamQuery(side)
                                          : d.cuStreamSynchronize(side));
        EXPECT_OK(d.cuThreadExchangeStreamCaptureMode(&exchanged));
        EXPECT(exchanged == of_thread);
      }).join();
      EXPECT_RESULT(wanted == CUDA_SUCCESS ? CUDA_SUCCESS : CUDA_ERROR_STREAM_CAPTURE_INVALIDATED,
                    d.cuStreamEndCapture(stream, &graph));
    }
  }
  CUstreamCaptureMode unknown = 3;
  EXPECT_RESULT(CUDA_ERROR_INVALID_VALUE, d.cuThreadExchangeStreamCaptureMode(&unknown));
  EXPECT_RESULT(CUDA_ERROR_INVALID_VALUE, d.cuThreadExchangeStreamCaptureMode(nullptr));
  // Work from outside, a stream left behind, an end elsewhere, the null stream.
  EXPECT_OK(d.cuEventRecord(event, side));
  begin(stream, CU_STREAM_CAPTURE_MODE_RELAXED);
  EXPECT_RESULT(CUDA_ERROR_STREAM_CAPTURE_ISOLATION, d.cuStreamWaitEvent(stream, event, 0));
  EXPECT_RESULT(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, d.cuStreamEndCapture(stream, &graph));
  begin(stream, CU_STREAM_CAPTURE_MODE_RELAXED);
  EXPECT_OK(d.cuEventRecord(event, stream));
  EXPECT_OK(d.cuStreamWaitEvent(side, event, 0));
  EXPECT_OK(d.cuMemsetD8Async(Pointer(log), 0, 4, side));
  constexpr CUresult kUnmatched = 903, kUnjoined = 904, kCapturedEvent = 907;
  EXPECT_RESULT(kUnmatched, d.cuStreamEndCapture(side, &graph));
  EXPECT_RESULT(kCapturedEvent, d.cuEventQuery(event));
  EXPECT_RESULT(kUnjoined, d.cuStreamEndCapture(stream, &graph));
  begin(stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
  std::thread([&] {
    CUgraph none = nullptr;
    EXPECT_OK(d.cuCtxSetCurrent(f.context));
    EXPECT_RESULT(CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD, d.cuStreamEndCapture(stream, &none));
  }).join();
  EXPECT_OK(d.cuStreamEndCapture(stream, &graph));
  begin(blocking, CU_STREAM_CAPTURE_MODE_RELAXED);
  EXPECT_RESULT(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, d.cuMemsetD8Async(Pointer(log), 0, 4, nullptr));
  EXPECT_RESULT(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, d.cuStreamEndCapture(blocking, &graph));
  EXPECT_OK(d.cuMemsetD8Async(Pointer(log), 0, 4, nullptr));
  // Destroyed in the middle of it: nothing is left that forbids anything.
  begin(side, CU_STREAM_CAPTURE_MODE_GLOBAL);
  EXPECT_OK(d.cuStreamDestroy_v2(side));
  CUdeviceptr pointer = 0;
  EXPECT_OK(d.cuMemAlloc_v2(&pointer, 16));
}

void ManyThreadsAtOnce() {
  Fixture f;
  constexpr int kThreads = 6, kRounds = 40;
  std::vector<std::thread> threads;
  const CUfunction add = f.Kernel("test_add_kernel");
  std::vector<int> wrong(kThreads);
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&f, &wrong, add, t] {
      d.cuCtxSetCurrent(f.context);
      CUstream stream = nullptr;
      wrong[static_cast<size_t>(t)] += d.cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING) != 0;
      for (int round = 0; round < kRounds; ++round) {
        constexpr uint32_t n = 100;
        CUdeviceptr x = 0;
        CUdeviceptr y = 0;
        std::vector<float> values(n, static_cast<float>(t));
        int bad = d.cuMemAllocFromPoolAsync(&x, n * 4, f.pool, stream) != 0;
        bad += d.cuMemAllocFromPoolAsync(&y, n * 4, f.pool, stream) != 0;
        bad += d.cuMemcpyHtoDAsync_v2(x, values.data(), n * 4, stream) != 0;
        std::fill(values.begin(), values.end(), -1.0f);  // staged: may be changed at once
        const AddParams params{reinterpret_cast<float*>(x), reinterpret_cast<float*>(y), n,
                               static_cast<float>(round)};
        bad += Launch(add, stream, params, 1, 128) != 0;
        bad += d.cuMemFreeAsync(x, stream) != 0;
        bad += d.cuMemcpyDtoHAsync_v2(values.data(), y, n * 4, stream) != 0;
        bad += d.cuMemFreeAsync(y, stream) != 0;
        for (const float value : values) bad += value != static_cast<float>(t + round);
        wrong[static_cast<size_t>(t)] += bad;
      }
      wrong[static_cast<size_t>(t)] += d.cuStreamDestroy_v2(stream) != 0;
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const int bad : wrong) EXPECT(bad == 0);
  EXPECT_OK(more.cuCtxSynchronize());
  uint64_t used = 1;
  EXPECT_OK(more.cuMemPoolGetAttribute(f.pool, CU_MEMPOOL_ATTR_USED_MEM_CURRENT, &used));
  EXPECT(used == 0);
}

}  // namespace

std::vector<Case> StreamCases() {
  return {
      {"in order within a stream", InOrderWithinAStream},
      {"streams are independent", StreamsAreIndependent},
      {"events order streams", EventsOrderStreams},
      {"events tell time", EventsTellTime},
      {"the null stream waits for blocking streams", TheNullStreamWaitsForBlockingStreams},
      {"blocking streams wait for the null stream", BlockingStreamsWaitForTheNullStream},
      {"each thread has its own stream", EachThreadHasItsOwnStream},
      {"host functions may not call the driver", HostFunctionsMayNotCall},
      {"late streams wait for demand", LateStreamsWaitForDemand},
      {"graphs replay", GraphsReplay},
      {"graph orders show missing edges", GraphOrdersShowMissingEdges},
      {"captures are spoilt", CapturesAreSpoilt},
      {"many threads at once", ManyThreadsAtOnce},
  };
}

}  // namespace lowrank::test
