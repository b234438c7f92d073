/// Op descriptors: the waist of the library. Above them nothing knows a backend, below them nothing
/// knows JavaScript. Shapes stand beside each operand; Check() is the last gate before a kernel.
#pragma once

#include <cstdint>
#include <string>

#include "native/core/ops/grouped_ops.h"
#include "native/core/ops/loss_ops.h"
#include "native/core/ops/norm_ops.h"
#include "native/core/status.h"
#include "native/core/tensor_view.h"
#include "native/host_device/map_function.h"

namespace lowrank {

/// Blockwise quantisation, w -> out. out's buffers are written; its format, blocksize and
/// codebooks are read.
struct QuantizeOp {
  static constexpr const char* kName = "quantize";
  TensorView w;   // [N, K]  f32 | bf16 | f16
  QuantView out;  // [N, K]
  Status Check() const;
  std::string Describe() const;
};

/// y = dequant(w), one rounding to y's dtype
struct DequantizeOp {
  static constexpr const char* kName = "dequantize";
  QuantView w;   // [N, K]
  TensorView y;  // [N, K]  out
  Status Check() const;
  std::string Describe() const;
};

/// How a forward product with the base weight is computed.
///
///   kExact  in the dtype of x, sums in f32
///   kInt8   of 4-bit formats: x and the codebook rounded to int8 with a scale a block, sums of a
///           block in int32. Of rowwise int8: x rounded with a scale a row, all of a row's sum in
///           int32. The definitions are in docs/architecture.md
enum class Compute : uint8_t { kExact, kInt8 };

// Terms of a rowwise sum of codes that are sure to fit 32 bits: 2^17 · 127² < 2^31.
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

/// Which elements of x the adapter sees, and by how much they are scaled up: gate(m, k) is 0 for a
/// dropped element and 1 / (1 - p) for a kept one. From the counter-based generator, or from `mask`
/// where given (non-zero = kept). p = 0 without a mask is the identity.
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
  Compute compute = Compute::kExact;  // of the base product; the adapter's stays in f32
  Status Check() const;
  std::string Describe() const;
};

/// Several projections of one x (query, key and value, or gate and up), each as LoraForwardOp;
/// where lora_a is not present, as MatmulOp.
struct LoraForwardManyOp {
  static constexpr const char* kName = "loraForwardMany";
  static constexpr int64_t kMost = 8;
  const LoraForwardOp* parts = nullptr;  // all have the same x; OpRefs::tables keeps them
  int64_t count = 0;                     // 1 to kMost
  Status Check() const;
  std::string Describe() const;
};
/// The product of a part without an adapter.
MatmulOp BaseOf(const LoraForwardOp& part);

/// y = silu(gate) ⊙ up of two projections of one x, which are rounded to its dtype before: the bits
/// of LoraForwardManyOp and SwigluOp in turn.
struct LoraForwardSwigluOp {
  static constexpr const char* kName = "loraForwardSwiglu";
  LoraForwardOp gate;  // as a part of LoraForwardManyOp; its y is optional
  LoraForwardOp up;    // the same of the same x; its y is present where gate's is
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
/// An output that is not present is not computed. With accumulate_<output> the gradient is added
/// to what the output holds.
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

/// y[i] ~ N(mean, scale²) or U[mean - scale, mean + scale), element i a function of (seed, i) only
struct RandomOp {
  static constexpr const char* kName = "random";
  enum class Kind : uint8_t { kNormal, kUniform };
  Kind kind = Kind::kNormal;
  uint64_t seed = 0;
  double mean = 0;
  double scale = 1;
  TensorView y;  // out
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

/// y = x · dequant(w)ᵀ + bias + scaling · h · lora_bᵀ; and where they are wanted the norms of the
/// adapted weight (FactoredNormOp), whose rows of lora_a go over w together with those of x.
struct LoraExpandOp {
  static constexpr const char* kName = "loraExpand";
  TensorView x;       // [M, K]  f16 | bf16 | f32
  WeightView w;       // [N, K]
  TensorView bias;    // [1, N]  optional
  TensorView h;       // [M, r]  f32
  TensorView lora_b;  // [N, r]
  TensorView y;       // [M, N]  out, dtype of x
  float scaling = 1;
  Compute compute = Compute::kExact;  // of the base product; the norms' is exact
  TensorView lora_a;                  // [r, K]  any dtype; where norms are wanted
  TensorView squares;                 // [1, N]  f32; where norms are wanted
  TensorView norms;                   // [1, N]  f32, out; optional
  /// The norms by themselves, their product in the dtype of x.
  FactoredNormOp Norm() const;
  Status Check() const;
  std::string Describe() const;
};

/// dh = scaling · dy · lora_b [M, r], d_lora_b = scaling · dyᵀ · h [N, r], d_bias = Σₘ dy [1, N].
/// An output that is not present is not computed; accumulate_<output> as in LoraBackwardOp.
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

/// y = alpha · a ⊙ b + beta · c in f32, element by element. A factor without b is 1, a summand
/// without c is 0. Of b and c a dimension of 1 goes with every row or column.
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

/// y = silu(gate) ⊙ up (native/host_device/swiglu.h)
struct SwigluOp {
  static constexpr const char* kName = "swiglu";
  TensorView gate;  // [M, N]  any dtype
  TensorView up;    // [M, N]  any dtype
  TensorView y;     // [M, N]  out, any dtype
  Status Check() const;
  std::string Describe() const;
};

/// d_gate = dy ⊙ up ⊙ silu'(gate), d_up = dy ⊙ silu(gate)
struct SwigluBackwardOp {
  static constexpr const char* kName = "swigluBackward";
  TensorView dy;      // [M, N]  any dtype
  TensorView gate;    // [M, N]  any dtype
  TensorView up;      // [M, N]  any dtype
  TensorView d_gate;  // [M, N]  out, any dtype
  TensorView d_up;    // [M, N]  out, any dtype
  Status Check() const;
  std::string Describe() const;
};

/// axis 0: out[n] = Σₘ a ⊙ b, axis 1: out[m] = Σₙ a ⊙ b; without b the sum of a. b as in
/// MultiplyAddOp.
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

/// norms[n] = Σₖ w[n, k]², of a quantised weight as it is decoded in f32
struct WeightNormsOp {
  static constexpr const char* kName = "weightNorms";
  WeightView w;      // [N, K]
  TensorView norms;  // [1, N]  f32, out
  Status Check() const;
  std::string Describe() const;
};

/// norms[n] = sqrt(squares[n] + 2 · scaling · Σⱼ lora_b[n, j] · (P[j, n] + scaling / 2 · Σᵢ G[j, i]
/// · lora_b[n, i])), P = x · wᵀ and G = lora_a · lora_aᵀ: the norms of the rows of w + scaling ·
/// lora_b · lora_a, of squares below 0 that of 0
struct FactoredNormOp {
  static constexpr const char* kName = "factoredNorm";
  WeightView w;        // [N, K]
  TensorView lora_a;   // [r, K]  any dtype; in the product with w rounded to `product`
  TensorView lora_b;   // [N, r]  any dtype
  TensorView squares;  // [1, N]  f32: WeightNormsOp's
  TensorView norms;    // [1, N]  f32, out
  DType product = DType::kF32;
  float scaling = 1;
  Status Check() const;
  std::string Describe() const;
};

/// The scales of a quantised weight to 8 bits, as QuantizeOp with double quantisation does it:
/// of `out` the parts of the scales are written, the codes are not looked at.
struct QuantizeScalesOp {
  static constexpr const char* kName = "quantizeScales";
  TensorView absmax;  // [1, blocks]  f32
  QuantView out;
  Status Check() const;
  std::string Describe() const;
};

/// Every op that each instruction set compiles, for tables that need one entry each:
/// X(Name, member), where NameOp is the descriptor and Name the function that runs it.
#define LOWRANK_FOR_EACH_ISA_OP(X)            \
  X(Quantize, quantize)                       \
  X(Dequantize, dequantize)                   \
  X(Matmul, matmul)                           \
  X(MatmulInputGrad, matmul_input_grad)       \
  X(LoraForward, lora_forward)                \
  X(LoraForwardMany, lora_forward_many)       \
  X(LoraForwardSwiglu, lora_forward_swiglu)   \
  X(LoraBackward, lora_backward)              \
  X(LoraShrink, lora_shrink)                  \
  X(LoraExpand, lora_expand)                  \
  X(LoraExpandBackward, lora_expand_backward) \
  X(LoraShrinkBackward, lora_shrink_backward) \
  X(WeightGrad, weight_grad)                  \
  X(GroupedForward, grouped_forward)          \
  X(GroupedBackward, grouped_backward)        \
  X(MultiplyAdd, multiply_add)                \
  X(Map, map)                                 \
  X(Swiglu, swiglu)                           \
  X(SwigluBackward, swiglu_backward)          \
  X(SumProduct, sum_product)                  \
  X(MapFeatures, map_features)                \
  X(BlockMatmul, block_matmul)                \
  X(BlockMatmulInputGrad, block_input_grad)   \
  X(BlockWeightGrad, block_weight_grad)       \
  X(WeightNorms, weight_norms)                \
  X(FactoredNorm, factored_norm)              \
  X(QuantizeScales, quantize_scales)          \
  X(Cast, cast)

/// The ops of a model around its linear layers, which have a table of their own
/// (native/cpu/kernels/isa/model_body.h).
#define LOWRANK_FOR_EACH_MODEL_OP(X)          \
  X(Embedding, embedding)                     \
  X(LinearCrossEntropy, linear_cross_entropy) \
  X(RmsNorm, rms_norm)                        \
  X(RmsNormBackward, rms_norm_backward)

/// Every op.
#define LOWRANK_FOR_EACH_OP(X) \
  LOWRANK_FOR_EACH_ISA_OP(X)   \
  LOWRANK_FOR_EACH_MODEL_OP(X) \
  X(Random, random)

}  // namespace lowrank
