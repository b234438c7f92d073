/// The table of docs/cpu-design.md: what each route takes, and why. `lowrank info --explain` prints
/// it; test/native/kernel_routes_check.cpp compares it with the page.
#pragma once

#include "native/cpu/route.h"

namespace lowrank::cpu {

struct RouteRow {
  Route route;
  const char* name;    // of the enumerator
  const char* file;    // below native/cpu/kernels/
  const char* weight;  // what it takes
  const char* rows;    // of x or dy, at once
  const char* reason;
};

constexpr int kRouteCount = static_cast<int>(Route::kDirectPanels) + 1;

/// In the order of Route.
const RouteRow& RowOf(Route route);

}  // namespace lowrank::cpu
