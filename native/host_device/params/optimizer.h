/// Parameters of the kernels over lists of parameters. The lists are in the parameters of a launch,
/// not in memory, so a captured launch needs no upload.
#pragma once

#include <cstdint>

#include "native/host_device/optimizer_step.h"
#include "native/host_device/params/elementwise.h"

namespace lowrank::gpu {

constexpr uint32_t kOptimizerThreads = 256;
constexpr int kOptimizerRun = 4;     // neighbouring elements of a thread
constexpr int kOptimizerUnroll = 4;  // runs of a thread
constexpr int64_t kOptimizerBlock = kOptimizerThreads * kOptimizerRun * kOptimizerUnroll;
constexpr int kOptimizerMostParts = 64;
constexpr int kNormMostParts = 160;

/// One gradient; element as SmallElement numbers it.
struct NormPart {
  const void* g;
  int64_t elems;
  int32_t first_block;  // of the launch
  int16_t element;
  int16_t vector;  // runs start at whole words
};

/// planes[block] = Σ g² of a block's elements.
struct NormSquaresParams {
  double* planes = nullptr;  // of this launch
  int32_t count = 0;
  NormPart parts[kNormMostParts];
};

/// norm = (Σ planes)^½
struct NormTotalParams {
  const double* planes = nullptr;
  float* norm = nullptr;
  int64_t count = 0;
};

struct OptimizerPart {
  void* p;
  const void* g;
  float* states[kMostStates];
  int64_t elems;
  float lr_scale;
  float weight_decay;
  int32_t first_block;  // of the launch
  int8_t p_element;
  int8_t g_element;
  int16_t vector;
};

/// Where a step reads its rate, its number and the norm; null: the value beside it.
struct OptimizerNow {
  const float* lr_at = nullptr;
  float* steps_done = nullptr;
  const float* norm = nullptr;
  float lr = 0;
  float step = 1;
};

struct OptimizerStepParams {
  OptimizerSettings settings;
  OptimizerNow now;
  int32_t count = 0;
  OptimizerPart parts[kOptimizerMostParts];
};

/// Shared memory of a step.
template <typename Rule>
struct OptimizerShared {
  Rule rule;
  int applies;
};
/// Of the sums: one of each warp.
struct NormShared {
  double warps[kOptimizerThreads / 32];
};

}  // namespace lowrank::gpu
