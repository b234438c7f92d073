/// Parameters of the kernels around the products of experts (cuda/experts/).
#pragma once

#include "native/host_device/params/elementwise.h"
#include "native/host_device/params/parts/row_lanes.h"

namespace lowrank::gpu {

constexpr int kMostExpertsOfRoute = 1024;
constexpr int kRouteThreads = 256;  // pairs that a block places at a time
constexpr int kRouteBlocks = 256;   // at most: a warp scans the counts of an expert at once
constexpr int kRouteScanThreads = 1024;
static_assert(kRouteScanThreads >= kMostExpertsOfRoute);

struct RouteShared {
  int32_t expert[kRouteThreads];
  int32_t next[kMostExpertsOfRoute + 1];  // of each expert, and of the dropped pairs
};

struct RouteScanShared {
  int32_t total[kRouteScanThreads];  // slots of each expert
  int32_t warps[kRouteScanThreads / 32];
};

/// RouteRowsOp. Pairs whose expert is not in [0, experts) count as those of expert `experts`.
struct RouteRowsParams {
  const int32_t* chosen = nullptr;  // [pairs]
  int32_t* order = nullptr;         // [pairs]
  int32_t* inverse = nullptr;       // [pairs]
  int32_t* offsets = nullptr;       // [experts + 1]
  /// [experts + 1, blocks]: pairs of an expert that a block has; after the scan, those that the
  /// blocks before it have.
  int32_t* counts = nullptr;
  int64_t pairs = 0;
  int64_t block_pairs = 0;  // of a block, a multiple of kRouteThreads
  int32_t blocks = 0;
  int32_t experts = 0;
};

constexpr int kSelectThreads = 128;
constexpr int kSelectRows = kSelectThreads / 32;  // a warp each

struct SelectExpertsShared {
  float logits[kSelectRows][kMostExpertsOfRoute];
  int32_t chosen[kSelectRows][kMostExpertsOfRoute];
};

/// The gradient of the gate of each expert, 0 of those that are not chosen.
struct SelectExpertsBackwardShared {
  double d_gates[kSelectRows][kMostExpertsOfRoute];
};

/// SelectExpertsOp and SelectExpertsBackwardOp
struct SelectExpertsParams {
  const void* logits = nullptr;    // [rows, experts]
  int32_t* chosen = nullptr;       // [rows, k]
  float* gates = nullptr;          // [rows, k]
  const float* d_gates = nullptr;  // [rows, k]; backward
  void* d_logits = nullptr;        // [rows, experts]; backward
  int64_t rows = 0;
  int32_t experts = 0;
  int32_t k = 0;
  int32_t element = kSmallF32;  // of logits and d_logits
  int32_t chosen_only = 1;
};

/// CombineRowsOp: rows of `out`. CombineRowsBackwardOp: rows are the pairs.
struct CombineRowsParams {
  SmallOperand y;                    // [slots, cols]
  SmallOperand out;                  // [rows, cols], or backward d_out, which is read
  SmallOperand dy;                   // [slots, cols] or absent; backward
  const float* gates = nullptr;      // [rows, k], null: 1
  float* d_gates = nullptr;          // [rows, k] or null; backward
  const int32_t* inverse = nullptr;  // [rows · k]
  const int32_t* kept = nullptr;     // [1]: slots that have an expert
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t row_runs = 0;  // of eight elements, the last one perhaps short
  int32_t k = 0;
  int32_t row_lanes = 1;  // lanes that share a row: a power of two
};

}  // namespace lowrank::gpu
