/// A matrix whose product was split: its planes are stored one after another.
#pragma once

#include "cuda/gpu.cuh"

namespace lowrank::gpu {

/// An element: its planes added in ascending order, as lora_reduce adds them; kAtOnce loads are in
/// flight at a time.
template <int kAtOnce>
LOWRANK_DEVICE float SumPlanes(const float* g_element, int64_t plane_elems, int planes) {
  float sum = 0;
#pragma unroll 1
  for (int first = 0; first < planes; first += kAtOnce) {
    float value[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      value[i] = first + i < planes ? g_element[(first + i) * plane_elems] : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) sum += value[i];
  }
  return sum;
}

}  // namespace lowrank::gpu
