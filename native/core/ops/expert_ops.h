/// A layer of experts (Shazeer et al., 2017, arXiv:1701.06538): which experts a row goes to, the
/// products of every expert with its own rows, and the sum of what a row's experts give. A slot is
/// one pair of a row and an expert of it.
#pragma once

#include "native/core/status.h"
#include "native/core/tensor_view.h"

namespace lowrank {

constexpr int64_t kMostExperts = 1024;

/// Indices that an op writes.
struct IndexOut {
  int32_t* data = nullptr;
  int64_t count = 0;
};

/// The slots of `rows` rows of k experts each, sorted by expert and then by row. Slots whose expert
/// is not in [0, experts) are dropped: they come last, from offsets[experts] on.
struct RouteView {
  IndexView order;    // [rows · k]: of slot s the pair m · k + j
  IndexView inverse;  // [rows · k]: of the pair m · k + j the slot
  IndexView offsets;  // [experts + 1]: the first slot of each expert
  int64_t rows = 0;
  int64_t k = 0;
  int64_t experts = 0;

  int64_t slots() const { return rows * k; }
  /// The slots that have an expert; read where the op runs.
  int64_t kept() const { return offsets.data[experts]; }
};

/// order, inverse and offsets of RouteView from the expert of each pair.
struct RouteRowsOp {
  static constexpr const char* kName = "routeRows";
  IndexView chosen;  // [rows · k]
  IndexOut order;    // out
  IndexOut inverse;  // out
  IndexOut offsets;  // out
  int64_t k = 0;
  int64_t experts = 0;
  Status Check() const;
  std::string Describe() const;
};

/// The k largest of each row of logits, the largest first and of equal ones the first, and the
/// softmax of a row: over the chosen ones if `chosen_only`, otherwise over all. NaN counts as the
/// largest. In double (native/host_device/expert_gates.h), rounded once.
struct SelectExpertsOp {
  static constexpr const char* kName = "selectExperts";
  TensorView logits;  // [M, E]  any dtype
  IndexOut chosen;    // [M · k]  out
  TensorView gates;   // [M, k]  f32, out
  bool chosen_only = true;
  Status Check() const;
  std::string Describe() const;
};

/// With p the softmax of SelectExpertsOp, s = Σⱼ gates[j] · d_gates[j] and d[e] = d_gates[j] of the
/// chosen expert e, else 0: d_logits[e] = p[e] · (d[e] - s).
struct SelectExpertsBackwardOp {
  static constexpr const char* kName = "selectExpertsBackward";
  TensorView d_gates;   // [M, k]  f32
  TensorView logits;    // [M, E]  any dtype
  IndexView chosen;     // [M · k]
  TensorView gates;     // [M, k]  f32
  TensorView d_logits;  // [M, E]  out, dtype of logits
  bool chosen_only = true;
  Status Check() const;
  std::string Describe() const;
};

/// y[s] = x[row of s] · dequant(w_e)ᵀ + bias_e + scaling · (x[row of s] · lora_a_eᵀ) · lora_b_eᵀ
/// for the slots s of each expert e; 0 for dropped slots. w_e is rows e · N to e · N + N - 1 of w.
struct ExpertsForwardOp {
  static constexpr const char* kName = "expertsMatmul";
  TensorView x;       // [rows, K] if `gather`, else [slots, K] in the order of the slots
  WeightView w;       // [E · N, K]
  TensorView bias;    // [E, N]  optional
  TensorView lora_a;  // [E · r, K], or [r, K] for all experts; optional
  TensorView lora_b;  // [E · N, r], or [N, r] for all experts
  TensorView h;       // [slots, r]  f32, out; present where lora_a is
  TensorView y;       // [slots, N]  out, dtype of x
  RouteView route;
  bool gather = true;
  float scaling = 0;
  Status Check() const;
  std::string Describe() const;
};

/// With dh = scaling · dy · lora_b_e of a slot s of expert e:
///   dx[s]      = dy[s] · dequant(w_e) + dh[s] · lora_a_e
///   d_lora_a_e = Σₛ dh[s]ᵀ · x[row of s]      d_lora_b_e = scaling · Σₛ dy[s]ᵀ · h[s]
/// over the slots of e, or of all experts for a factor that they share. 0 for dropped slots and
/// for experts without slots. An absent output is not computed.
struct ExpertsBackwardOp {
  static constexpr const char* kName = "expertsMatmulBackward";
  TensorView dy;        // [slots, N]
  WeightView w;         // [E · N, K]
  TensorView x;         // as forward; needed for d_lora_a
  TensorView lora_a;    // as forward; optional
  TensorView lora_b;    // as forward
  TensorView h;         // [slots, r]  f32; needed for d_lora_b
  TensorView dx;        // [slots, K]  out, optional, dtype of dy
  TensorView d_lora_a;  // out, optional
  TensorView d_lora_b;  // out, optional
  RouteView route;
  bool gather = true;
  float scaling = 0;
  Status Check() const;
  std::string Describe() const;
};

/// out[m] = Σⱼ gates[m, j] · y[slot of m, j], j ascending in f32, rounded once; a dropped slot adds
/// nothing. Without gates they are 1.
struct CombineRowsOp {
  static constexpr const char* kName = "combineRows";
  TensorView y;      // [slots, N]  any dtype
  TensorView gates;  // [rows, k]  f32, optional
  TensorView out;    // [rows, N]  out, dtype of y
  RouteView route;
  Status Check() const;
  std::string Describe() const;
};

/// dy[slot of m, j] = gates[m, j] · d_out[m], rounded once, and d_gates[m, j] = d_out[m] · y[slot
/// of m, j], summed in double; both 0 for dropped slots.
struct CombineRowsBackwardOp {
  static constexpr const char* kName = "combineRowsBackward";
  TensorView d_out;    // [rows, N]  any dtype
  TensorView y;        // [slots, N]  any dtype; needed for d_gates
  TensorView gates;    // [rows, k]  f32, optional
  TensorView dy;       // [slots, N]  out, optional, any dtype
  TensorView d_gates;  // [rows, k]  out, optional, f32
  RouteView route;
  Status Check() const;
  std::string Describe() const;
};

}  // namespace lowrank
