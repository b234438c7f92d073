/// The arithmetic of an optimiser's step, with the same bits on every device: + - * / and sqrt
/// only, each rounded once. Compile with contraction off (-ffp-contract=off, nvcc --fmad=false).
///
/// With g the gradient in f32, and b1, b2 for beta1 and beta2:
///
///   factor    min(1, max_norm / (norm + 1e-6)), in f32
///   AdamW     (Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2019,
///             arXiv:1711.05101)
///             m = m · b1 + (g · factor) · (1 - b1)
///             v = v · b2 + (g · factor)² · (1 - b2)
///             p = p · (1 - rate · weight_decay)
///                 - m / (sqrt(v) · (1 - b2^t)^-½ + eps) · (rate / (1 - b1^t))
///             rate = lr · lr_scale
///
/// Order     constants (1 - b, 1 - rate · weight_decay, (1 - b2^t)^-½, rate / (1 - b1^t)) in
/// double,
///           each rounded once to f32; then every operation from left to right in f32. b^t is
///           squared and multiplied from the highest bit of t down
#pragma once

#include "native/host_device/map_function.h"

namespace lowrank {

/// Every kind of step: X(name in C++, name in JavaScript)
#define LOWRANK_FOR_EACH_OPTIMIZER(X) X(kAdamW, "adamw")

#define LOWRANK_OPTIMIZER_ENUMERATOR(id, name) id,
enum class Optimizer : uint8_t { LOWRANK_FOR_EACH_OPTIMIZER(LOWRANK_OPTIMIZER_ENUMERATOR) };
#undef LOWRANK_OPTIMIZER_ENUMERATOR

/// The most states (moments) that a kind has for each parameter.
constexpr int kMostStates = 2;

/// What all parameters of all steps share.
struct OptimizerSettings {
  double beta1 = 0;
  double beta2 = 0;
  float eps = 0;
  float max_norm = 0;  // infinite: gradients are used as they are
};

/// What a step reads when it starts.
struct OptimizerMoment {
  float lr = 0;
  float norm = 0;  // of all gradients; 0 if it was not computed
  float step = 1;  // the number of this step, from 1 on
};

/// Does the step change anything? Only with a finite norm and a usable rate.
LOWRANK_MAP_INLINE bool StepApplies(const OptimizerMoment& now) {
  const float largest = 3.4028234663852886e38f;
  return now.norm <= largest && now.lr >= 0.0f && now.lr <= largest;
}

/// The number of the step after `done` steps. Counts beyond f32's integers stay at the last one.
LOWRANK_MAP_INLINE float NextStep(float done) {
  if (!(done >= 0.0f)) return 1.0f;
  return done < 16777215.0f ? done + 1.0f : 16777216.0f;
}

/// For exponents up to 2^24.
LOWRANK_MAP_INLINE double PowerOf(double base, uint32_t exponent) {
  double power = 1.0;
  for (uint32_t bit = 1u << 24; bit != 0; bit >>= 1) {
    power *= power;
    if ((exponent & bit) != 0) power *= base;
  }
  return power;
}

/// What a rule needs of a type beyond + - * /: of float here, of a vector where the processor's
/// kernels use one.
template <typename F>
struct RootLanes;

template <>
struct RootLanes<float> {
  LOWRANK_MAP_INLINE float Sqrt(float value) {
#if defined(__CUDA_ARCH__)
    return sqrtf(value);
#else
    return __builtin_sqrtf(value);
#endif
  }
};

/// The constants of one parameter in one step, and the update of an element or a vector of them.
template <Optimizer kKind>
struct OptimizerRule;

template <>
struct OptimizerRule<Optimizer::kAdamW> {
  static constexpr int kStates = 2;  // m, v

  float factor;
  float beta1;
  float beta2;
  float rest1;  // 1 - beta1
  float rest2;
  float decay;
  float step_size;
  float inv_root;  // of the correction of v
  float eps;

  LOWRANK_MAP_INLINE OptimizerRule Of(const OptimizerSettings& settings, const OptimizerMoment& now,
                                      float lr_scale, float weight_decay) {
    const double rate = static_cast<double>(now.lr) * static_cast<double>(lr_scale);
    const uint32_t step = static_cast<uint32_t>(now.step);
    OptimizerRule rule;
    const float factor = settings.max_norm / (now.norm + 1e-6f);
    rule.factor = factor < 1.0f ? factor : 1.0f;
    rule.beta1 = static_cast<float>(settings.beta1);
    rule.beta2 = static_cast<float>(settings.beta2);
    rule.rest1 = static_cast<float>(1.0 - settings.beta1);
    rule.rest2 = static_cast<float>(1.0 - settings.beta2);
    rule.decay = static_cast<float>(1.0 - rate * static_cast<double>(weight_decay));
    rule.step_size = static_cast<float>(rate / (1.0 - PowerOf(settings.beta1, step)));
    rule.inv_root = static_cast<float>(1.0 / SqrtOf(1.0 - PowerOf(settings.beta2, step)));
    rule.eps = settings.eps;
    return rule;
  }

  template <typename F>
  LOWRANK_MAP_INLINE void Update(const OptimizerRule& rule, F g, F* p, F* states) {
    const F scaled = g * rule.factor;
    states[0] = states[0] * rule.beta1 + scaled * rule.rest1;
    states[1] = states[1] * rule.beta2 + scaled * scaled * rule.rest2;
    const F size = RootLanes<F>::Sqrt(states[1]) * rule.inv_root + rule.eps;
    *p = *p * rule.decay - states[0] / size * rule.step_size;
  }
};

}  // namespace lowrank
