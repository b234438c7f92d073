/// A driver that fails on purpose: the same table of calls, wrapped so that any of them returns a
/// chosen error instead of doing its work. For tests of error handling.
///
///   LOWRANK_CUDA_FAULT="cuMemAllocFromPoolAsync:n=2:code=2,cuEventRecord:code=700:sticky"
///
/// n      which call of that name fails, from 1 (the default)
/// code   the CUresult (default 999)
/// sticky every later call of that name fails too
/// fatal  every later call of any name fails too, as after a fault of the device
///
/// LOWRANK_CUDA_FAULT_LOG=path appends the name of each failed call, one per line: a test whose
/// fault never struck would prove nothing.
#pragma once

#include "native/core/status.h"
#include "native/cuda/driver/driver.h"

namespace lowrank::cuda {

/// How many drivers a process may wrap at once.
constexpr int kFaultPlaces = 2;

/// Wraps `driver` if the environment variable is set; one driver per place, all count together.
/// Fails with kDevice if the variable cannot be parsed, rather than testing nothing.
Status InjectFaults(Driver* driver, int place);

}  // namespace lowrank::cuda
