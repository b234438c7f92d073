/// For the emulator's own tests: expectations, and closures run as kernels.
#pragma once

#include <cstdio>
#include <functional>
#include <string>

#include "cuda/emulator/runtime.h"

namespace lowrank::emu {

inline int failures = 0;

inline void Expect(bool right, const std::string& what) {
  if (right) return;
  ++failures;
  std::printf("wrong: %s\n", what.c_str());
}

using Body = std::function<void()>;

/// Runs a closure as every thread of a grid.
inline LaunchStatus RunBody(const Body& body, uint32_t threads, uint32_t grid = 1,
                            uint32_t shared = 0, uint32_t cluster = 1) {
  const Body* pointer = &body;
  Kernel kernel;
  kernel.name = "closure";
  kernel.body = [](const void* params) { (**static_cast<const Body* const*>(params))(); };
  kernel.param_bytes = sizeof(pointer);
  kernel.hooks = Hooks::kOnRequest;
  Launch launch;
  launch.kernel = &kernel;
  launch.grid = Dim3(grid);
  launch.block = Dim3(threads);
  launch.shared_bytes = shared;
  launch.cluster = cluster;
  launch.params = &pointer;
  return RunGrid(launch);
}

}  // namespace lowrank::emu
