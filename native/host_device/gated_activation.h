/// The gate of a gated feed-forward layer (Shazeer, GLU variants improve Transformer, 2020,
/// arXiv:2002.05202) and its derivatives, with the same bits on every device: f32 in, arithmetic in
/// double as in map_function.h, rounded once to f32.
///
///   y = f(g) · u      ∂y/∂u = f(g)      ∂y/∂g = u · f'(g)
///
///   silu        f = g · σ(g)                    f' = σ · (1 + g · (1 - σ))
///   gelu        f = g · Φ(g)                    f' = Φ + g · φ(g), φ and Φ the density and the
///               distribution of the standard normal
///   gelu-tanh   f = g · σ(2 a), which is g / 2 · (1 + tanh a), a = √(2 / π) · (g + 0.044715 g³)
///               (Hendrycks and Gimpel, 2016, arXiv:1606.08415)
///               f' = σ · (1 + g · (1 - σ) · 2 a')
///   silu-clamped  of g' = min(g, 7) and u' = u in [-7, 7]: y = f(g') · (u' + 1), f = g · σ(1.702
///   g)
///               (gpt-oss); f' = σ · (1 + 1.702 g · (1 - σ)), and ∂y/∂g = 0 above 7, ∂y/∂u = 0
///               outside of [-7, 7]
///
/// Error   Relatively, σ is within 2^-45 of its value, Φ and φ within 2^-38, also where they are
///         small. So an f32 result is at most 0.501 units in the last place off; where f' crosses
///         zero, by 2^-48 of its terms more, for gelu 2^-38.
///
/// Φ       For s >= 0, Φ(-s) = e^(-s² / 2) · E(s / √2) / 2 and Φ(s) = 1 - Φ(-s).
///         E(z) = e^(z²) erfc z is p(t) / (z + 3), t = (z - 3) / (z + 3), with p of degree 13
///         through E at Chebyshev's points of [0, 11] in t. Beyond z = 11, Φ(-s) is below every
///         f32.
#pragma once

#include <type_traits>

#include "native/host_device/map_function.h"

namespace lowrank {

/// Every function of a gate: X(name in C++, name in JavaScript)
#define LOWRANK_FOR_EACH_GATE_FUNCTION(X) \
  X(kSilu, "silu")                        \
  X(kGelu, "gelu")                        \
  X(kGeluTanh, "gelu-tanh")               \
  X(kSiluClamped, "silu-clamped")

#define LOWRANK_GATE_ENUMERATOR(id, name) id,
enum class GateFunction : uint8_t { LOWRANK_FOR_EACH_GATE_FUNCTION(LOWRANK_GATE_ENUMERATOR) };
#undef LOWRANK_GATE_ENUMERATOR

constexpr double kClampedMost = 7.0;
constexpr double kClampedSlope = 1.702;

/// Of silu-clamped: min(g, 7), and u in [-7, 7].
template <typename D>
LOWRANK_MAP_INLINE D ClampedGate(D gate) {
  using L = MapLanes<D>;
  return L::Select(gate > kClampedMost, L::Splat(kClampedMost), gate);
}
template <typename D>
LOWRANK_MAP_INLINE D ClampedUp(D up) {
  using L = MapLanes<D>;
  return L::Select(up < -kClampedMost, L::Splat(-kClampedMost), ClampedGate(up));
}

/// f(g) / g, and f'(g).
template <typename D>
struct GateParts {
  D share;
  D slope;
};

template <typename D>
LOWRANK_MAP_INLINE GateParts<D> NormalParts(D gate) {
  using L = MapLanes<D>;
  const D size = L::Select(gate < 0.0, -gate, gate);
  const D scaled = size * 0.7071067811865476;
  const D z = L::Select(scaled > 11.0, L::Splat(11.0), scaled);
  const D sum = z + 3.0;
  const D t = (z - 3.0) / sum;
  D p = L::Splat(-5.402219628172513e-06);
  p = p * t - 1.4672774719975202e-05;
  p = p * t + 3.1953201156589945e-05;
  p = p * t + 0.00010633434716724618;
  p = p * t - 0.0002776402469004514;
  p = p * t - 0.0005480129603051572;
  p = p * t + 0.003034282033525053;
  p = p * t - 0.0012124608068577196;
  p = p * t - 0.02682726206534672;
  p = p * t + 0.11952776524486786;
  p = p * t - 0.31046726043206774;
  p = p * t + 0.590228356943675;
  p = p * t - 0.8833944531915449;
  p = p * t + 1.0740069070895004;
  const D exponential = ExpOf(gate * gate * -0.5);
  const D tail = exponential * p / sum * 0.5;
  const D share = L::Select(gate < 0.0, tail, 1.0 - tail);
  return {share, share + gate * (exponential * 0.3989422804014327)};
}

template <GateFunction kFunction, typename D>
LOWRANK_MAP_INLINE GateParts<D> GatePartsOf(D gate) {
  if constexpr (kFunction == GateFunction::kGelu) {
    return NormalParts(gate);
  } else if constexpr (kFunction == GateFunction::kGeluTanh) {
    const D square = gate * gate;
    const D sigma = SigmoidOf(gate * (1.5957691216057308 + square * 0.07135481627260025));
    const D twice = 1.5957691216057308 + square * 0.21406444881780076;
    return {sigma, sigma * (1.0 + gate * (1.0 - sigma) * twice)};
  } else if constexpr (kFunction == GateFunction::kSiluClamped) {
    const D scaled = gate * kClampedSlope;
    const D sigma = SigmoidOf(scaled);
    return {sigma, sigma * (1.0 + scaled * (1.0 - sigma))};
  } else {
    const D sigma = SigmoidOf(gate);
    return {sigma, sigma * (1.0 + gate * (1.0 - sigma))};
  }
}

/// y of gates and ups in double, one or a vector of them.
template <GateFunction kFunction, typename D>
LOWRANK_MAP_INLINE D GatedOf(D gate, D up) {
  if constexpr (kFunction == GateFunction::kSiluClamped) {
    const D capped = ClampedGate(gate);
    return capped * GatePartsOf<kFunction>(capped).share * (ClampedUp(up) + 1.0);
  }
  return gate * GatePartsOf<kFunction>(gate).share * up;
}

template <typename D>
struct GateGrads {
  D gate;
  D up;
};

template <GateFunction kFunction, typename D>
LOWRANK_MAP_INLINE GateGrads<D> GateGradsOf(D dy, D gate, D up) {
  if constexpr (kFunction == GateFunction::kSiluClamped) {
    using L = MapLanes<D>;
    const D capped = ClampedGate(gate);
    const D held = ClampedUp(up);
    const GateParts<D> parts = GatePartsOf<kFunction>(capped);
    const D slope = L::Select(gate > kClampedMost, L::Splat(0.0), parts.slope);
    const D share = L::Select(held < up, L::Splat(0.0), parts.share);
    return {dy * ((held + 1.0) * slope),
            dy * (capped * L::Select(held > up, L::Splat(0.0), share))};
  }
  const GateParts<D> parts = GatePartsOf<kFunction>(gate);
  return {dy * (up * parts.slope), dy * (gate * parts.share)};
}

template <GateFunction kFunction>
LOWRANK_MAP_INLINE float Gated(float gate, float up) {
  return static_cast<float>(GatedOf<kFunction>(static_cast<double>(gate), static_cast<double>(up)));
}

template <GateFunction kFunction>
LOWRANK_MAP_INLINE void GateGradients(float dy, float gate, float up, float* d_gate, float* d_up) {
  const GateGrads<double> grads = GateGradsOf<kFunction>(
      static_cast<double>(dy), static_cast<double>(gate), static_cast<double>(up));
  *d_gate = static_cast<float>(grads.gate);
  *d_up = static_cast<float>(grads.up);
}

/// Calls body(std::integral_constant of the function).
template <typename Body>
LOWRANK_MAP_INLINE void WithGateFunction(GateFunction function, const Body& body) {
  switch (function) {
#define LOWRANK_GATE_CASE(id, name)                                 \
  case GateFunction::id:                                            \
    body(std::integral_constant<GateFunction, GateFunction::id>()); \
    break;
    LOWRANK_FOR_EACH_GATE_FUNCTION(LOWRANK_GATE_CASE)
#undef LOWRANK_GATE_CASE
  }
}

}  // namespace lowrank
