/// Times of work on a stream: many calls in a graph, replayed between two events.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "test/gpu/machine.h"

namespace lowrank::cuda {

/// Queues call number `i`; calls differ in their operands, so that caches stay cold.
using QueueCall = std::function<Status(int i, CUstream stream)>;

struct TimingOptions {
  int distinct_calls = 1;
  int samples = 100;
  double sample_us = 1000;  // aimed at; a sample is a whole number of rounds over distinct calls
  double warm_up_us = 100e3;
};

struct Timing {
  double median_us = 0;  // of one call
  double first_quartile_us = 0;
  double third_quartile_us = 0;
  int samples = 0;
  int calls_a_sample = 0;
  bool graph = false;  // else launched one by one
};

Status Measure(Machine* machine, const QueueCall& queue, const TimingOptions& options,
               Timing* timing);

/// `"median_us":..,` and what else is known.
std::string TimingJson(const Timing& timing);

}  // namespace lowrank::cuda
