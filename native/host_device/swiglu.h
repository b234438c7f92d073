/// The gate of a SwiGLU feed-forward layer (Shazeer, GLU variants improve Transformer, 2020,
/// arXiv:2002.05202) and its derivatives, with the same bits on every device: f32 in, arithmetic in
/// double as in map_function.h, rounded once to f32.
///
///   y = g · σ(g) · u      ∂y/∂u = g · σ(g)      ∂y/∂g = u · σ(g) · (1 + g · (1 - σ(g)))
#pragma once

#include "native/host_device/map_function.h"

namespace lowrank {

/// y of gates and ups in double, one or a vector of them.
template <typename D>
LOWRANK_MAP_INLINE D SwigluOf(D gate, D up) {
  return gate * SigmoidOf(gate) * up;
}

template <typename D>
struct SwigluGrads {
  D gate;
  D up;
};

template <typename D>
LOWRANK_MAP_INLINE SwigluGrads<D> SwigluGradsOf(D dy, D gate, D up) {
  const D sigma = SigmoidOf(gate);
  return {dy * (up * sigma * (1.0 + gate * (1.0 - sigma))), dy * (gate * sigma)};
}

LOWRANK_MAP_INLINE float Swiglu(float gate, float up) {
  return static_cast<float>(SwigluOf(static_cast<double>(gate), static_cast<double>(up)));
}

LOWRANK_MAP_INLINE void SwigluGradients(float dy, float gate, float up, float* d_gate,
                                        float* d_up) {
  const SwigluGrads<double> grads =
      SwigluGradsOf(static_cast<double>(dy), static_cast<double>(gate), static_cast<double>(up));
  *d_gate = static_cast<float>(grads.gate);
  *d_up = static_cast<float>(grads.up);
}

}  // namespace lowrank
