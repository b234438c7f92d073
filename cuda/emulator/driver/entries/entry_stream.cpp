/// Driver calls on streams, events, captures and graphs.
#include <algorithm>
#include <utility>

#include "cuda/emulator/driver/entries/exports.h"
#include "cuda/emulator/driver/options.h"
#include "cuda/emulator/driver/state.h"

namespace lowrank::cuda {

using namespace emu::driver;

namespace {

constexpr CUresult kIllegalState = 401;
constexpr CUresult kCaptureMerge = 902;
constexpr CUresult kCaptureUnmatched = 903;
constexpr CUresult kCaptureUnjoined = 904;
constexpr CUresult kCapturedEvent = 907;

/// For calls that wait for or ask after a stream: a captured one has nothing to answer, and the
/// capture is spoilt.
CUresult RefuseCaptured(const ContextPtr& context, const StreamPtr& stream) {
  {
    const std::lock_guard<std::mutex> lock(Capture::Mutex());
    if (stream->capture != nullptr) {
      stream->capture->invalid = true;
      return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
  }
  if (stream == context->streams->null_stream() && NullStreamWouldJoinCapture(context)) {
    return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
  }
  return CUDA_SUCCESS;
}

CUresult EnterEvent(CUevent handle, ContextPtr* context, EventPtr* event) {
  if (const int result = EnterContext(context); result != 0) return result;
  *event = State::Get().events.Find(handle);
  return *event == nullptr ? CUDA_ERROR_INVALID_HANDLE : CUDA_SUCCESS;
}

void EraseCapture(const CapturePtr& capture) {
  std::vector<CapturePtr>& active = ActiveCaptures();
  active.erase(std::remove(active.begin(), active.end(), capture), active.end());
}

/// Runs the nodes one after the other, in an order that their edges allow.
int RunGraph(const Graph& graph) {
  const emu::Options options = emu::CurrentOptions();
  for (const size_t node : OrderNodes(graph, static_cast<int>(options.order), options.seed)) {
    const Work& work = graph.nodes[node].work;
    if (const int result = work ? work() : 0; result != 0) return result;
  }
  return CUDA_SUCCESS;
}

}  // namespace

CUresult cuStreamCreateWithPriority(CUstream* stream, unsigned flags, int priority) {
  ContextPtr context;
  if (const int result = EnterContext(&context); result != 0) return result;
  if (stream == nullptr || flags > CU_STREAM_NON_BLOCKING) return CUDA_ERROR_INVALID_VALUE;
  auto object = std::make_shared<StreamObject>();
  object->context = context;
  object->stream = context->streams->Create((flags & CU_STREAM_NON_BLOCKING) == 0, priority);
  *stream = State::Get().streams.Add(object);
  return CUDA_SUCCESS;
}

CUresult cuStreamCreate(CUstream* stream, unsigned flags) {
  return cuStreamCreateWithPriority(stream, flags, 0);
}

CUresult cuStreamDestroy_v2(CUstream stream) {
  ContextPtr context;
  const int entered = EnterContext(&context);
  if (context == nullptr) return entered;
  const auto object = State::Get().streams.Remove(stream);
  if (object == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  {
    const std::lock_guard<std::mutex> lock(Capture::Mutex());
    if (const CapturePtr capture = object->stream->capture; capture != nullptr) {
      capture->invalid = true;
      if (capture->origin() == object->stream) {
        capture->Finish();
        EraseCapture(capture);
      }
    }
  }
  object->context->streams->Close(object->stream);
  return entered;
}

CUresult cuStreamQuery(CUstream stream) {
  ContextPtr context;
  StreamPtr found;
  if (const CUresult result = EnterStream(stream, &context, &found); result != 0) return result;
  if (const CUresult result = RefuseCaptured(context, found); result != 0) return result;
  if (const CUresult result = RefuseDuringCapture(); result != 0) return result;
  const bool reached = context->streams->Reached(context->streams->Last(found));
  if (const int fault = context->streams->fault(); fault != 0) return fault;
  return reached ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}

CUresult cuStreamSynchronize(CUstream stream) {
  ContextPtr context;
  StreamPtr found;
  if (const CUresult result = EnterStream(stream, &context, &found); result != 0) return result;
  if (const CUresult result = RefuseCaptured(context, found); result != 0) return result;
  if (const CUresult result = RefuseDuringCapture(); result != 0) return result;
  if (found == context->streams->null_stream()) {
    // An empty operation: the null stream waits for the blocking ones.
    context->streams->Wait(context->streams->Push(found, nullptr));
  } else {
    context->streams->Wait(context->streams->Last(found));
  }
  context->memory->TrimToThresholds();
  return context->streams->fault();
}

CUresult cuStreamWaitEvent(CUstream stream, CUevent event, unsigned flags) {
  ContextPtr context;
  StreamPtr found;
  if (const CUresult result = EnterStream(stream, &context, &found); result != 0) return result;
  const EventPtr awaited = State::Get().events.Find(event);
  if (awaited == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  if (flags > 1) return CUDA_ERROR_INVALID_VALUE;
  const std::lock_guard<std::mutex> event_lock(awaited->mutex);
  {
    const std::lock_guard<std::mutex> lock(Capture::Mutex());
    if (awaited->captured) {
      const CapturePtr capture = awaited->capture.lock();
      if (capture == nullptr) return kCapturedEvent;
      if (found == context->streams->null_stream()) {
        capture->invalid = true;
        return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
      }
      if (found->capture != nullptr && found->capture != capture) {
        capture->invalid = found->capture->invalid = true;
        return kCaptureMerge;
      }
      Capture::Join(capture, found, awaited->nodes);
      return CUDA_SUCCESS;
    }
    if (found->capture != nullptr) {
      if (awaited->recording == nullptr) return CUDA_SUCCESS;
      found->capture->invalid = true;
      return CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
    }
  }
  if (awaited->recording == nullptr) return CUDA_SUCCESS;  // nothing was recorded: nothing to wait
  if (found == context->streams->null_stream() && NullStreamWouldJoinCapture(context)) {
    return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
  }
  context->streams->Push(found, nullptr, {awaited->recording->ticket});
  return CUDA_SUCCESS;
}

CUresult cuLaunchHostFunc(CUstream stream, void (*function)(void*), void* argument) {
  ContextPtr context;
  StreamPtr found;
  if (const CUresult result = EnterStream(stream, &context, &found); result != 0) return result;
  if (function == nullptr) return CUDA_ERROR_INVALID_VALUE;
  return Submit(context, found, NodeKind::kHost,
                [=] { return StreamSet::RunHostFunction(function, argument); });
}

CUresult cuStreamIsCapturing(CUstream stream, CUstreamCaptureStatus* status) {
  ContextPtr context;
  StreamPtr found;
  if (const CUresult result = EnterStream(stream, &context, &found); result != 0) return result;
  if (status == nullptr) return CUDA_ERROR_INVALID_VALUE;
  {
    const std::lock_guard<std::mutex> lock(Capture::Mutex());
    *status = found->capture == nullptr ? CU_STREAM_CAPTURE_STATUS_NONE
              : found->capture->invalid ? CU_STREAM_CAPTURE_STATUS_INVALIDATED
                                        : CU_STREAM_CAPTURE_STATUS_ACTIVE;
  }
  if (found == context->streams->null_stream() && NullStreamWouldJoinCapture(context)) {
    return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
  }
  return CUDA_SUCCESS;
}

CUresult cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode* mode) {
  ContextPtr context;
  if (const int result = EnterContext(&context); result != 0) return result;
  if (mode == nullptr || *mode < CU_STREAM_CAPTURE_MODE_GLOBAL ||
      *mode > CU_STREAM_CAPTURE_MODE_RELAXED) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  const CaptureMode asked = static_cast<CaptureMode>(*mode);
  *mode = static_cast<CUstreamCaptureMode>(std::exchange(ThreadCaptureMode(), asked));
  return CUDA_SUCCESS;
}

CUresult cuStreamBeginCapture_v2(CUstream stream, CUstreamCaptureMode mode) {
  ContextPtr context;
  StreamPtr found;
  if (const CUresult result = EnterStream(stream, &context, &found); result != 0) return result;
  if (mode < CU_STREAM_CAPTURE_MODE_GLOBAL || mode > CU_STREAM_CAPTURE_MODE_RELAXED) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  if (found == context->streams->null_stream()) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  const std::lock_guard<std::mutex> lock(Capture::Mutex());
  if (found->capture != nullptr) return kIllegalState;
  auto capture = std::make_shared<Capture>(found, static_cast<CaptureMode>(mode));
  found->capture = capture;
  found->capture_tail.clear();
  ActiveCaptures().push_back(std::move(capture));
  return CUDA_SUCCESS;
}

CUresult cuStreamEndCapture(CUstream stream, CUgraph* graph) {
  ContextPtr context;
  StreamPtr found;
  if (const CUresult result = EnterStream(stream, &context, &found); result != 0) return result;
  if (graph == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *graph = nullptr;
  GraphPtr captured;
  {
    const std::lock_guard<std::mutex> lock(Capture::Mutex());
    const CapturePtr capture = found->capture;
    if (capture == nullptr) return kIllegalState;
    if (capture->origin() != found) return kCaptureUnmatched;
    if (capture->mode() != CaptureMode::kRelaxed &&
        capture->thread() != std::this_thread::get_id()) {
      return CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD;
    }
    const bool joined = capture->Finish();
    EraseCapture(capture);
    if (capture->invalid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    if (!joined) return kCaptureUnjoined;
    captured = capture->graph();
  }
  auto object = std::make_shared<GraphObject>();
  object->context = context;
  object->graph = std::move(captured);
  *graph = State::Get().graphs.Add(object);
  return CUDA_SUCCESS;
}

CUresult cuGraphInstantiateWithFlags(CUgraphExec* exec, CUgraph graph, unsigned long long flags) {
  ContextPtr context;
  if (const int result = EnterContext(&context); result != 0) return result;
  const auto object = State::Get().graphs.Find(graph);
  if (object == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  constexpr unsigned long long kAutoFreeOnLaunch = 1, kUseNodePriority = 8;
  if (exec == nullptr || (flags & ~(kAutoFreeOnLaunch | kUseNodePriority)) != 0) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  *exec = State::Get().graph_execs.Add(std::make_shared<GraphObject>(*object));
  return CUDA_SUCCESS;
}

CUresult cuGraphLaunch(CUgraphExec exec, CUstream stream) {
  ContextPtr context;
  StreamPtr found;
  if (const CUresult result = EnterStream(stream, &context, &found); result != 0) return result;
  const auto object = State::Get().graph_execs.Find(exec);
  if (object == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  if (object->context != context) return CUDA_ERROR_INVALID_CONTEXT;
  return Submit(context, found, NodeKind::kKernel,
                [graph = object->graph] { return RunGraph(*graph); });
}

CUresult cuGraphExecDestroy(CUgraphExec exec) {
  ContextPtr context;
  const int entered = EnterContext(&context);
  if (context == nullptr) return entered;
  return State::Get().graph_execs.Remove(exec) == nullptr ? CUDA_ERROR_INVALID_HANDLE : entered;
}

CUresult cuGraphDestroy(CUgraph graph) {
  ContextPtr context;
  const int entered = EnterContext(&context);
  if (context == nullptr) return entered;
  return State::Get().graphs.Remove(graph) == nullptr ? CUDA_ERROR_INVALID_HANDLE : entered;
}

CUresult cuEventCreate(CUevent* event, unsigned flags) {
  ContextPtr context;
  if (const int result = EnterContext(&context); result != 0) return result;
  if (event == nullptr || flags > (CU_EVENT_BLOCKING_SYNC | CU_EVENT_DISABLE_TIMING)) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  auto object = std::make_shared<Event>();
  object->context = context;
  object->timing = (flags & CU_EVENT_DISABLE_TIMING) == 0;
  *event = State::Get().events.Add(object);
  return CUDA_SUCCESS;
}

CUresult cuEventDestroy_v2(CUevent event) {
  ContextPtr context;
  const int entered = EnterContext(&context);
  if (context == nullptr) return entered;
  return State::Get().events.Remove(event) == nullptr ? CUDA_ERROR_INVALID_HANDLE : entered;
}

CUresult cuEventRecord(CUevent event, CUstream stream) {
  ContextPtr context;
  StreamPtr found;
  if (const CUresult result = EnterStream(stream, &context, &found); result != 0) return result;
  const EventPtr recorded = State::Get().events.Find(event);
  if (recorded == nullptr || recorded->context != context) return CUDA_ERROR_INVALID_HANDLE;
  const std::lock_guard<std::mutex> event_lock(recorded->mutex);
  {
    const std::lock_guard<std::mutex> lock(Capture::Mutex());
    if (found->capture != nullptr) {
      if (found->capture->invalid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
      recorded->captured = true;
      recorded->capture = found->capture;
      recorded->nodes = found->capture_tail;
      recorded->recording = nullptr;
      return CUDA_SUCCESS;
    }
  }
  if (found == context->streams->null_stream() && NullStreamWouldJoinCapture(context)) {
    return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
  }
  recorded->captured = false;
  recorded->recording = context->streams->Record(found);
  return CUDA_SUCCESS;
}

CUresult cuEventQuery(CUevent event) {
  ContextPtr context;
  EventPtr found;
  if (const CUresult result = EnterEvent(event, &context, &found); result != 0) return result;
  const std::lock_guard<std::mutex> lock(found->mutex);
  if (found->captured) return kCapturedEvent;
  if (const CUresult result = RefuseDuringCapture(); result != 0) return result;
  const bool reached =
      found->recording == nullptr || context->streams->Reached(found->recording->ticket);
  if (const int fault = context->streams->fault(); fault != 0) return fault;
  return reached ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}

CUresult cuEventSynchronize(CUevent event) {
  ContextPtr context;
  EventPtr found;
  if (const CUresult result = EnterEvent(event, &context, &found); result != 0) return result;
  RecordingPtr recording;
  {
    const std::lock_guard<std::mutex> lock(found->mutex);
    if (found->captured) return kCapturedEvent;
    recording = found->recording;
  }
  if (const CUresult result = RefuseDuringCapture(); result != 0) return result;
  if (recording != nullptr) context->streams->Wait(recording->ticket);
  context->memory->TrimToThresholds();
  return context->streams->fault();
}

CUresult cuEventElapsedTime(float* milliseconds, CUevent start, CUevent end) {
  ContextPtr context;
  EventPtr first;
  EventPtr last;
  if (const CUresult result = EnterEvent(start, &context, &first); result != 0) return result;
  if (const CUresult result = EnterEvent(end, &context, &last); result != 0) return result;
  if (milliseconds == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (!first->timing || !last->timing) return CUDA_ERROR_INVALID_HANDLE;
  RecordingPtr from;
  RecordingPtr to;
  {
    const std::lock_guard<std::mutex> lock(first->mutex);
    from = first->recording;
  }
  {
    const std::lock_guard<std::mutex> lock(last->mutex);
    to = last->recording;
  }
  if (from == nullptr || to == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  const bool reached =
      context->streams->Reached(from->ticket) && context->streams->Reached(to->ticket);
  if (!reached) return CUDA_ERROR_NOT_READY;
  const std::chrono::duration<float, std::milli> elapsed = to->time - from->time;
  *milliseconds = elapsed.count();
  return CUDA_SUCCESS;
}

}  // namespace lowrank::cuda
