/// Parameters of the adapter's backward kernels.
#pragma once

#include <cstdint>

#include "native/host_device/params/lora_shrink.h"

namespace lowrank::gpu {

/// A gradient and, if it is one of dy, dh, from one pass over dy. Blocks come in groups. A group is
/// one split of `grad` (a range of rows of dy): first its shrink blocks, then its gradient blocks,
/// so that the second reader finds those rows in L2. A gradient alone has no shrink blocks.
struct LoraGradParams {
  LoraContractParams shrink;
  LoraContractParams grad;
  uint32_t shrink_rows = 0;    // blocks along m in a group
  uint32_t shrink_splits = 0;  // blocks along n for each
  uint32_t grad_cols = 0;      // blocks along the columns in a group
};

/// out[i] = scale · Σ_s planes[s · plane_elems + i] (+ out[i]), s ascending, i < count
struct LoraReduceSegment {
  const float* planes = nullptr;
  void* out = nullptr;
  int64_t plane_elems = 0;
  int64_t count = 0;
  int32_t splits = 0;
  float scale = 1;
  int32_t out_element = kLoraF32;
  int32_t accumulate = 0;
  int32_t out_vector = 0;  // four elements are one aligned word
};

struct LoraReduceParams {
  static constexpr int kSegments = 4;
  LoraReduceSegment segments[kSegments];  // one for each blockIdx.y
};

}  // namespace lowrank::gpu
