#include "bench/gpu/timing.h"

#include <algorithm>
#include <cmath>

namespace lowrank::cuda {
namespace {

constexpr int kMaxCallsASample = 512;

/// What one measurement holds, given back whichever way it ends.
struct Held {
  const Driver& driver;
  CUstream stream = nullptr;
  CUevent begin = nullptr;
  CUevent end = nullptr;
  CUgraph graph = nullptr;
  CUgraphExec exec = nullptr;

  explicit Held(const Driver& of) : driver(of) {}
  ~Held() {
    if (exec != nullptr) driver.cuGraphExecDestroy(exec);
    if (graph != nullptr) driver.cuGraphDestroy(graph);
    if (begin != nullptr) driver.cuEventDestroy_v2(begin);
    if (end != nullptr) driver.cuEventDestroy_v2(end);
    if (stream != nullptr) driver.cuStreamDestroy_v2(stream);
  }
};

Status QueueAll(const QueueCall& queue, int calls, int distinct, CUstream stream) {
  for (int i = 0; i < calls; ++i) LOWRANK_RETURN_IF_ERROR(queue(i % distinct, stream));
  return Status();
}

/// False where the work cannot be captured; the stream is as before.
bool Capture(const QueueCall& queue, int calls, int distinct, Held* held) {
  const Driver& driver = held->driver;
  if (driver.cuStreamBeginCapture_v2(held->stream, CU_STREAM_CAPTURE_MODE_RELAXED) != 0) {
    return false;
  }
  const bool queued = QueueAll(queue, calls, distinct, held->stream).ok();
  const bool ended = driver.cuStreamEndCapture(held->stream, &held->graph) == CUDA_SUCCESS;
  return queued && ended && held->graph != nullptr &&
         driver.cuGraphInstantiateWithFlags(&held->exec, held->graph, 0) == CUDA_SUCCESS;
}

/// The value that the share `p` of the sorted ones does not exceed, between neighbours linearly.
double Quantile(const std::vector<double>& sorted, double p) {
  const double place = p * static_cast<double>(sorted.size() - 1);
  const size_t below = static_cast<size_t>(place);
  const size_t above = std::min(below + 1, sorted.size() - 1);
  return sorted[below] + (place - static_cast<double>(below)) * (sorted[above] - sorted[below]);
}

}  // namespace

Status Measure(Machine* machine, const QueueCall& queue, const TimingOptions& options,
               Timing* timing) {
  const Driver& driver = machine->driver();
  Held held(driver);
  const auto check = [&](CUresult result, const char* call) {
    return machine->Check(result, call);
  };
  LOWRANK_RETURN_IF_ERROR(
      check(driver.cuStreamCreate(&held.stream, CU_STREAM_NON_BLOCKING), "cuStreamCreate"));
  LOWRANK_RETURN_IF_ERROR(check(driver.cuEventCreate(&held.begin, 0), "cuEventCreate"));
  LOWRANK_RETURN_IF_ERROR(check(driver.cuEventCreate(&held.end, 0), "cuEventCreate"));

  const auto sample = [&](const std::function<Status()>& work, double* us) -> Status {
    LOWRANK_RETURN_IF_ERROR(check(driver.cuEventRecord(held.begin, held.stream), "cuEventRecord"));
    LOWRANK_RETURN_IF_ERROR(work());
    LOWRANK_RETURN_IF_ERROR(check(driver.cuEventRecord(held.end, held.stream), "cuEventRecord"));
    LOWRANK_RETURN_IF_ERROR(check(driver.cuEventSynchronize(held.end), "cuEventSynchronize"));
    float ms = 0;
    LOWRANK_RETURN_IF_ERROR(
        check(driver.cuEventElapsedTime(&ms, held.begin, held.end), "cuEventElapsedTime"));
    *us = static_cast<double>(ms) * 1000;
    return Status();
  };

  // Once to load what is loaded lazily, once to know how many calls make a sample.
  const int distinct = options.distinct_calls;
  double round_us = 0;
  for (int turn = 0; turn < 2; ++turn) {
    LOWRANK_RETURN_IF_ERROR(
        sample([&] { return QueueAll(queue, distinct, distinct, held.stream); }, &round_us));
  }
  const double wanted = std::ceil(options.sample_us / std::max(round_us, 1.0));
  const int most = std::max(1, kMaxCallsASample / distinct);
  const int calls = distinct * static_cast<int>(std::clamp(wanted, 1.0, double{1} * most));
  timing->graph = Capture(queue, calls, distinct, &held);
  const auto work = [&]() -> Status {
    if (!timing->graph) return QueueAll(queue, calls, distinct, held.stream);
    return check(driver.cuGraphLaunch(held.exec, held.stream), "cuGraphLaunch");
  };

  // The clocks come up under load.
  double us = 0;
  for (double spent = 0; spent < options.warm_up_us; spent += std::max(us, 1.0)) {
    LOWRANK_RETURN_IF_ERROR(sample(work, &us));
  }
  std::vector<double> times;
  for (int i = 0; i < options.samples; ++i) {
    LOWRANK_RETURN_IF_ERROR(sample(work, &us));
    times.push_back(us / calls);
  }
  std::sort(times.begin(), times.end());
  timing->median_us = Quantile(times, 0.5);
  timing->first_quartile_us = Quantile(times, 0.25);
  timing->third_quartile_us = Quantile(times, 0.75);
  timing->samples = options.samples;
  timing->calls_a_sample = calls;
  return Status();
}

std::string TimingJson(const Timing& timing) {
  char text[240];
  std::snprintf(text, sizeof(text),
                "\"median_us\":%.4f,\"quartiles_us\":[%.4f,%.4f],\"samples\":%d,"
                "\"calls_a_sample\":%d,\"graph\":%s",
                timing.median_us, timing.first_quartile_us, timing.third_quartile_us,
                timing.samples, timing.calls_a_sample, timing.graph ? "true" : "false");
  return text;
}

}  // namespace lowrank::cuda
