/// The gate of a SwiGLU feed-forward layer (Shazeer, GLU variants improve Transformer, 2020,
/// arXiv:2002.05202) and its derivatives, with the same bits on every device: f32 in, arithmetic in
/// double as in map_function.h, one rounding to f32.
///
///   y = g · σ(g) · u      ∂y/∂u = g · σ(g)      ∂y/∂g = u · σ(g) · (1 + g · (1 - σ(g)))
#pragma once

#include "native/host_device/map_function.h"

namespace lowrank {

LOWRANK_MAP_INLINE float Swiglu(float gate, float up) {
  const double sigma = MapValue<MapFunction::kSigmoid>(gate);
  return static_cast<float>(static_cast<double>(gate) * sigma * static_cast<double>(up));
}

LOWRANK_MAP_INLINE void SwigluGradients(float dy, float gate, float up, float* d_gate,
                                        float* d_up) {
  const double d = static_cast<double>(dy);
  const double g = static_cast<double>(gate);
  const double sigma = MapValue<MapFunction::kSigmoid>(gate);
  *d_up = static_cast<float>(d * (g * sigma));
  *d_gate = static_cast<float>(d * (static_cast<double>(up) * sigma * (1.0 + g * (1.0 - sigma))));
}

}  // namespace lowrank
