/// Parameters of the kernels of the loss behind a head.
#pragma once

#include "native/host_device/params/elementwise.h"
#include "native/host_device/params/gemm_mma.h"
#include "native/host_device/params/parts/row_lanes.h"

namespace lowrank::gpu {

/// What runs along the vocabulary for each token.
struct CrossEntropyState {
  double sum;        // of exp(z - largest)
  float largest;     // logit so far
  float scale_down;  // of what was summed before the block at hand
  float target;      // the target's logit
  float unused;
};

/// A block of the vocabulary: its logits in planes, which become its part of the softmax.
struct CrossEntropyBlockParams {
  float* planes = nullptr;              // [plane_count, rows, cols], whose sum is the logits
  SmallOperand p;                       // [rows, cols] out; absent without a gradient
  CrossEntropyState* states = nullptr;  // [rows]
  const int32_t* targets = nullptr;     // [rows], ids of the vocabulary or -1
  float* losses = nullptr;              // [rows]; with the last block
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t row_runs = 0;
  int64_t first_id = 0;  // of the block
  int32_t plane_count = 1;
  int32_t row_lanes = 1;
  int32_t first = 0;   // block of the vocabulary
  int32_t vector = 0;  // runs are whole words
  float softcap = 0;
};

/// sums = scale_down · sums + the planes of p · block; of the first block without the sums before.
struct CrossEntropyAddParams {
  const float* planes = nullptr;  // [plane_count, rows, cols]
  float* sums = nullptr;          // [rows, cols]
  const CrossEntropyState* states = nullptr;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t row_runs = 0;
  int32_t plane_count = 1;
  int32_t row_lanes = 1;
  int32_t first = 0;
  int32_t vector = 0;  // runs are whole words
};

/// dx = weight · (sums / sum - derivative · head[target]), zeros without a target
struct CrossEntropyGradParams {
  const float* sums = nullptr;  // [rows, cols]
  SmallOperand dx;              // [rows, cols]
  GemmMmaWeight head{};         // [V, cols]
  const CrossEntropyState* states = nullptr;
  const int32_t* targets = nullptr;
  const float* weights = nullptr;  // [rows], or null: 1
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t row_runs = 0;
  int32_t row_lanes = 1;
  int32_t vector = 0;  // runs of the head are whole words of one block
  float scale = 1;
  float softcap = 0;
};

struct CrossEntropyBlockShared {
  RowSumShared sums;
  uint32_t largest[kRowThreads / 32];
  float target;
};

struct CrossEntropyGradShared {
  float codebook[256];
};

}  // namespace lowrank::gpu
