/// Op descriptors, the narrow waist of the library: nothing above them knows a backend, nothing
/// below them knows JavaScript. Each operand has its shape next to it. Check() is the last check
/// before a kernel.
#pragma once

#include <cstdint>
#include <string>

#include "native/core/ops/attention_ops.h"
#include "native/core/ops/expert_ops.h"
#include "native/core/ops/grouped_ops.h"
#include "native/core/ops/loss_ops.h"
#include "native/core/ops/norm_ops.h"
#include "native/core/ops/optimizer_ops.h"
#include "native/core/status.h"
#include "native/core/tensor_view.h"
#include "native/host_device/gated_activation.h"
#include "native/host_device/map_function.h"

namespace lowrank {

/// Blockwise quantisation, w -> out. out's buffers are written; its format, blocksize and codebooks
/// are read.
struct QuantizeOp {
  static constexpr const char* kName = "quantize";
  TensorView w;   // [N, K]  f32 | bf16 | f16
  QuantView out;  // [N, K]
  Status Check() const;
  std::string Describe() const;
};

/// y = dequant(w), rounded once to y's dtype
struct DequantizeOp {
  static constexpr const char* kName = "dequantize";
  QuantView w;   // [N, K]
  TensorView y;  // [N, K]  out
  Status Check() const;
  std::string Describe() const;
};

/// The precision of a forward product with the base weight.
///
///   kExact  in the dtype of x, sums in f32
///   kInt8   for 4-bit formats: x and the codebook rounded to int8 with a scale per block, sums
///           of a block in int32. For rowwise int8: x rounded with a scale per row, the whole sum
///           of a row in int32. docs/architecture.md has the definitions
enum class Compute : uint8_t { kExact, kInt8 };

// Number of terms for which a rowwise sum of codes is guaranteed to fit 32 bits: 2^17 · 127² <
// 2^31.
constexpr int64_t kMostInt8RowDepth = int64_t{1} << 17;

/// y = x · dequant(w)ᵀ + bias
struct MatmulOp {
  static constexpr const char* kName = "matmul";
  TensorView x;     // [M, K]  f16 | bf16 | f32
  WeightView w;     // [N, K]  dense of any dtype, or quantised
  TensorView bias;  // [1, N]  optional
  TensorView y;     // [M, N]  out, dtype of x
  Compute compute = Compute::kExact;
  Status Check() const;
  std::string Describe() const;
};

/// dx = dy · dequant(w)
struct MatmulInputGradOp {
  static constexpr const char* kName = "matmulInputGrad";
  TensorView dy;  // [M, N]
  WeightView w;   // [N, K]
  TensorView dx;  // [M, K]  out, dtype of dy
  Status Check() const;
  std::string Describe() const;
};

/// The elements of x that the adapter sees, and their scale: gate(m, k) is 0 for a dropped element
/// and 1 / (1 - p) for a kept one. It comes from the counter-based generator, or from `mask` if
/// given (non-zero = kept). p = 0 without a mask is the identity.
struct DropoutSpec {
  double p = 0;
  uint64_t seed = 0;
  TensorView mask;  // [M, K] any dtype, optional

  bool active() const { return p > 0 || mask.present; }
};

/// y = x · dequant(w)ᵀ + bias + scaling · ((gate ⊙ x) · lora_aᵀ · lora_bᵀ + lora_bias)
struct LoraForwardOp {
  static constexpr const char* kName = "loraForward";
  TensorView x;          // [M, K]  f16 | bf16 | f32, row-major
  WeightView w;          // [N, K]  frozen base weight
  TensorView bias;       // [1, N]  optional
  TensorView lora_a;     // [r, K]
  TensorView lora_b;     // [N, r]
  TensorView lora_bias;  // [1, N]  optional
  TensorView h;          // [M, r]  f32, out: (gate ⊙ x) · lora_aᵀ, kept for the backward pass
  TensorView y;          // [M, N]  out, dtype of x
  float scaling = 0;     // lora_alpha / r, or / sqrt(r)
  DropoutSpec dropout;
  Compute compute = Compute::kExact;  // precision of the base product; the adapter's is always f32
  Status Check() const;
  std::string Describe() const;
};

/// Several projections of one x (query, key and value, or gate and up), each as LoraForwardOp, or
/// as MatmulOp if lora_a is absent.
struct LoraForwardManyOp {
  static constexpr const char* kName = "loraForwardMany";
  static constexpr int64_t kMost = 8;
  const LoraForwardOp* parts = nullptr;  // all with the same x; OpRefs::tables keeps them
  int64_t count = 0;                     // 1 to kMost
  Status Check() const;
  std::string Describe() const;
};
/// The product of a part without an adapter.
MatmulOp BaseOf(const LoraForwardOp& part);

/// y = silu(gate) ⊙ up for two projections of one x, both rounded to its dtype first: the bits of
/// LoraForwardManyOp followed by GatedActivationOp.
struct LoraForwardSwigluOp {
  static constexpr const char* kName = "loraForwardSwiglu";
  LoraForwardOp gate;  // as a part of LoraForwardManyOp; its y is optional
  LoraForwardOp up;    // the same, for the same x; its y is present exactly if gate's is
  TensorView y;        // [M, N]  out, dtype of x
  Status Check() const;
  std::string Describe() const;
};

/// With dh = scaling · dy · lora_b [M, r]:
///   dx          = dy · dequant(w) + gate ⊙ (dh · lora_a)   [M, K]
///   d_lora_a    = dhᵀ · (gate ⊙ x)                         [r, K]
///   d_lora_b    = scaling · dyᵀ · h                        [N, r]
///   d_bias      = Σₘ dy                                    [1, N]
///   d_lora_bias = scaling · Σₘ dy                          [1, N]
/// An absent output is not computed. With accumulate_<output> the gradient is added to the output's
/// old value.
struct LoraBackwardOp {
  static constexpr const char* kName = "loraBackward";
  TensorView dy;           // [M, N]
  TensorView x;            // [M, K]  needed for d_lora_a
  WeightView w;            // [N, K]  needed for dx
  TensorView lora_a;       // [r, K]
  TensorView lora_b;       // [N, r]
  TensorView h;            // [M, r]  f32, needed for d_lora_b
  TensorView dx;           // out, optional, dtype of dy
  TensorView d_lora_a;     // out, optional
  TensorView d_lora_b;     // out, optional
  TensorView d_bias;       // out, optional
  TensorView d_lora_bias;  // out, optional
  bool accumulate_dx = false;
  bool accumulate_d_lora_a = false;
  bool accumulate_d_lora_b = false;
  bool accumulate_d_bias = false;
  bool accumulate_d_lora_bias = false;
  float scaling = 0;
  DropoutSpec dropout;
  Status Check() const;
  std::string Describe() const;
};

/// dst = src, rounded once to dst's dtype
struct CastOp {
  static constexpr const char* kName = "cast";
  TensorView src;  // [rows, cols]
  TensorView dst;  // [rows, cols]  out
  Status Check() const;
  std::string Describe() const;
};

/// y[i] ~ N(mean, scale²) or U[mean - scale, mean + scale), element i a function of (seed, i) only.
/// kKeep is the gate of DropoutSpec as a mask: 0 with probability `mean`, else 1.
struct RandomOp {
  static constexpr const char* kName = "random";
  enum class Kind : uint8_t { kNormal, kUniform, kKeep };
  Kind kind = Kind::kNormal;
  uint64_t seed = 0;
  TensorView seed_at;  // [1, 2] f32 optional: the bits of a word that is added when the op runs
  double mean = 0;
  double scale = 1;
  TensorView y;  // out
  /// On a host device, when the op runs.
  uint64_t SeedNow() const;
  Status Check() const;
  std::string Describe() const;
};

/// h = scaling · (gate ⊙ x) · lora_aᵀ
struct LoraShrinkOp {
  static constexpr const char* kName = "loraShrink";
  TensorView x;       // [M, K]  f16 | bf16 | f32
  TensorView lora_a;  // [r, K]
  TensorView h;       // [M, r]  f32, out
  float scaling = 1;
  DropoutSpec dropout;
  Status Check() const;
  std::string Describe() const;
};

struct FactoredNormOp;

/// y = x · dequant(w)ᵀ + bias + scaling · h · lora_bᵀ, and if wanted the norms of the adapted
/// weight (FactoredNormOp), for which the rows of lora_a pass over w together with those of x.
struct LoraExpandOp {
  static constexpr const char* kName = "loraExpand";
  TensorView x;       // [M, K]  f16 | bf16 | f32
  WeightView w;       // [N, K]
  TensorView bias;    // [1, N]  optional
  TensorView h;       // [M, r]  f32
  TensorView lora_b;  // [N, r]
  TensorView y;       // [M, N]  out, dtype of x
  float scaling = 1;
  Compute compute = Compute::kExact;  // precision of the base product; the norms are exact
  TensorView lora_a;                  // [r, K]  any dtype; if norms are wanted
  TensorView squares;                 // [1, N]  f32; if norms are wanted
  TensorView norms;                   // [1, N]  f32, out; optional
  /// The norms by themselves, with their product in the dtype of x.
  FactoredNormOp Norm() const;
  Status Check() const;
  std::string Describe() const;
};

/// dh = scaling · dy · lora_b [M, r], d_lora_b = scaling · dyᵀ · h [N, r], d_bias = Σₘ dy [1, N].
/// An absent output is not computed; accumulate_<output> as in LoraBackwardOp.
struct LoraExpandBackwardOp {
  static constexpr const char* kName = "loraExpandBackward";
  TensorView dy;        // [M, N]
  TensorView h;         // [M, r]  f32, needed for d_lora_b
  TensorView lora_b;    // [N, r]
  TensorView dh;        // out, optional, f32
  TensorView d_lora_b;  // out, optional
  TensorView d_bias;    // out, optional
  bool accumulate_dh = false;
  bool accumulate_d_lora_b = false;
  bool accumulate_d_bias = false;
  float scaling = 1;
  Status Check() const;
  std::string Describe() const;
};

/// dx = dy · dequant(w) + gate ⊙ (scaling · dh · lora_a) [M, K],
/// d_lora_a = scaling · dhᵀ · (gate ⊙ x) [r, K]
struct LoraShrinkBackwardOp {
  static constexpr const char* kName = "loraShrinkBackward";
  TensorView dy;        // [M, N]  needed for dx
  WeightView w;         // [N, K]  needed for dx
  TensorView dh;        // [M, r]  f32
  TensorView x;         // [M, K]  needed for d_lora_a
  TensorView lora_a;    // [r, K]
  TensorView dx;        // out, optional, dtype of dy
  TensorView d_lora_a;  // out, optional
  bool accumulate_dx = false;
  bool accumulate_d_lora_a = false;
  float scaling = 1;
  DropoutSpec dropout;
  Status Check() const;
  std::string Describe() const;
};

/// dw = dyᵀ · x
struct WeightGradOp {
  static constexpr const char* kName = "weightGrad";
  TensorView dy;  // [M, N]  any dtype
  TensorView x;   // [M, K]  any dtype
  TensorView dw;  // [N, K]  out, any dtype
  bool accumulate = false;
  Status Check() const;
  std::string Describe() const;
};

/// y = alpha · a ⊙ b + beta · c in f32, element by element. An absent b counts as 1, an absent c as
/// 0. Dimensions of size 1 in b and c are broadcast.
struct MultiplyAddOp {
  static constexpr const char* kName = "multiplyAdd";
  TensorView a;  // [M, N]  any dtype
  TensorView b;  // [M | 1, N | 1]  any dtype, optional
  TensorView c;  // [M | 1, N | 1]  any dtype, optional
  TensorView y;  // [M, N]  out, any dtype
  float alpha = 1;
  float beta = 1;
  Status Check() const;
  std::string Describe() const;
};

/// y = f(a) element by element (native/host_device/map_function.h)
struct MapOp {
  static constexpr const char* kName = "mapTensor";
  MapFunction function = MapFunction::kReciprocal;
  TensorView a;  // [M, N]  any dtype
  TensorView y;  // [M, N]  out, any dtype
  Status Check() const;
  std::string Describe() const;
};

/// y = f(gate) ⊙ up (native/host_device/gated_activation.h)
struct GatedActivationOp {
  static constexpr const char* kName = "gatedActivation";
  TensorView gate;  // [M, N]  any dtype
  TensorView up;    // [M, N]  any dtype
  TensorView y;     // [M, N]  out, any dtype
  GateFunction function = GateFunction::kSilu;
  Status Check() const;
  std::string Describe() const;
};

/// d_gate = dy ⊙ up ⊙ f'(gate), d_up = dy ⊙ f(gate)
struct GatedActivationBackwardOp {
  static constexpr const char* kName = "gatedActivationBackward";
  TensorView dy;      // [M, N]  any dtype
  TensorView gate;    // [M, N]  any dtype
  TensorView up;      // [M, N]  any dtype
  TensorView d_gate;  // [M, N]  out, any dtype
  TensorView d_up;    // [M, N]  out, any dtype
  GateFunction function = GateFunction::kSilu;
  Status Check() const;
  std::string Describe() const;
};

/// axis 0: out[n] = Σₘ a ⊙ b, axis 1: out[m] = Σₙ a ⊙ b; without b the sum of a. b is broadcast as
/// in MultiplyAddOp.
struct SumProductOp {
  static constexpr const char* kName = "sumProduct";
  TensorView a;    // [M, N]  any dtype
  TensorView b;    // [M | 1, N | 1]  any dtype, optional
  TensorView out;  // [1, N] or [1, M]  f32, out
  int axis = 0;
  Status Check() const;
  std::string Describe() const;
};

/// y[m, j] = alpha · Σ x[m, t] over t of map's list j + beta · c[m, j]
struct MapFeaturesOp {
  static constexpr const char* kName = "mapFeatures";
  TensorView x;  // [M, K]  any dtype
  FeatureMapView map;
  TensorView c;  // [M, J]  any dtype, optional
  TensorView y;  // [M, J]  out, any dtype
  float alpha = 1;
  float beta = 1;
  Status Check() const;
  std::string Describe() const;
};

/// y[m, g, :] = x[m, g, :] · w[g]ᵀ for each of G blocks
struct BlockMatmulOp {
  static constexpr const char* kName = "blockMatmul";
  TensorView x;        // [M · G, K]  f16 | bf16 | f32
  TensorView w;        // [G · N, K]  f32, or the dtype of x
  TensorView y;        // [M · G, N]  out, dtype of x
  int64_t blocks = 0;  // G
  Status Check() const;
  std::string Describe() const;
};

/// dx[m, g, :] = dy[m, g, :] · w[g]
struct BlockMatmulInputGradOp {
  static constexpr const char* kName = "blockMatmulInputGrad";
  TensorView dy;       // [M · G, N]
  TensorView w;        // [G · N, K]
  TensorView dx;       // [M · G, K]  out, dtype of dy
  int64_t blocks = 0;  // G
  Status Check() const;
  std::string Describe() const;
};

/// dw[g] = Σₘ dy[m, g, :]ᵀ · x[m, g, :]
struct BlockWeightGradOp {
  static constexpr const char* kName = "blockWeightGrad";
  TensorView dy;       // [M · G, N]  any dtype
  TensorView x;        // [M · G, K]  any dtype
  TensorView dw;       // [G · N, K]  out, f32
  int64_t blocks = 0;  // G
  Status Check() const;
  std::string Describe() const;
};

/// norms[n] = Σₖ w[n, k]²; a quantised weight is decoded in f32
struct WeightNormsOp {
  static constexpr const char* kName = "weightNorms";
  WeightView w;      // [N, K]
  TensorView norms;  // [1, N]  f32, out
  Status Check() const;
  std::string Describe() const;
};

/// norms[n] = sqrt(squares[n] + 2 · scaling · Σⱼ lora_b[n, j] · (P[j, n] + scaling / 2 · Σᵢ G[j, i]
/// · lora_b[n, i])), P = x · wᵀ and G = lora_a · lora_aᵀ: the norms of the rows of w + scaling ·
/// lora_b · lora_a. A square below 0 counts as 0
struct FactoredNormOp {
  static constexpr const char* kName = "factoredNorm";
  WeightView w;        // [N, K]
  TensorView lora_a;   // [r, K]  any dtype; rounded to `product` in the product with w
  TensorView lora_b;   // [N, r]  any dtype
  TensorView squares;  // [1, N]  f32: WeightNormsOp's
  TensorView norms;    // [1, N]  f32, out
  DType product = DType::kF32;
  float scaling = 1;
  Status Check() const;
  std::string Describe() const;
};

/// Quantises the scales of a quantised weight to 8 bits, as QuantizeOp does with double
/// quantisation. Writes the scale parts of `out` and does not read the codes.
struct QuantizeScalesOp {
  static constexpr const char* kName = "quantizeScales";
  TensorView absmax;  // [1, blocks]  f32
  QuantView out;
  Status Check() const;
  std::string Describe() const;
};

/// Every op that each instruction set compiles, for tables with one entry per op: X(Name, member),
/// where NameOp is the descriptor and Name the function that runs it.
#define LOWRANK_FOR_EACH_ISA_OP(X)                      \
  X(Quantize, quantize)                                 \
  X(Dequantize, dequantize)                             \
  X(Matmul, matmul)                                     \
  X(MatmulInputGrad, matmul_input_grad)                 \
  X(LoraForward, lora_forward)                          \
  X(LoraForwardMany, lora_forward_many)                 \
  X(LoraForwardSwiglu, lora_forward_swiglu)             \
  X(LoraBackward, lora_backward)                        \
  X(LoraShrink, lora_shrink)                            \
  X(LoraExpand, lora_expand)                            \
  X(LoraExpandBackward, lora_expand_backward)           \
  X(LoraShrinkBackward, lora_shrink_backward)           \
  X(WeightGrad, weight_grad)                            \
  X(GroupedForward, grouped_forward)                    \
  X(GroupedBackward, grouped_backward)                  \
  X(MultiplyAdd, multiply_add)                          \
  X(Map, map)                                           \
  X(GatedActivation, gated_activation)                  \
  X(GatedActivationBackward, gated_activation_backward) \
  X(SumProduct, sum_product)                            \
  X(MapFeatures, map_features)                          \
  X(BlockMatmul, block_matmul)                          \
  X(BlockMatmulInputGrad, block_input_grad)             \
  X(BlockWeightGrad, block_weight_grad)                 \
  X(WeightNorms, weight_norms)                          \
  X(FactoredNorm, factored_norm)                        \
  X(QuantizeScales, quantize_scales)                    \
  X(Cast, cast)

/// The ops of a model around its linear layers, which have a table of their own
/// (native/cpu/kernels/isa/model_body.h).
#define LOWRANK_FOR_EACH_MODEL_OP(X)            \
  X(Attention, attention)                       \
  X(AttentionBackward, attention_backward)      \
  X(CombineRows, combine_rows)                  \
  X(CombineRowsBackward, combine_rows_backward) \
  X(Embedding, embedding)                       \
  X(ExpertsForward, experts_forward)            \
  X(ExpertsBackward, experts_backward)          \
  X(GlobalNorm, global_norm)                    \
  X(LinearCrossEntropy, linear_cross_entropy)   \
  X(OptimizerStep, optimizer_step)              \
  X(RmsNorm, rms_norm)                          \
  X(RmsNormBackward, rms_norm_backward)         \
  X(RouteRows, route_rows)                      \
  X(SelectExperts, select_experts)              \
  X(SelectExpertsBackward, select_experts_backward)

/// Every op.
#define LOWRANK_FOR_EACH_OP(X) \
  LOWRANK_FOR_EACH_ISA_OP(X)   \
  LOWRANK_FOR_EACH_MODEL_OP(X) \
  X(Random, random)

}  // namespace lowrank
