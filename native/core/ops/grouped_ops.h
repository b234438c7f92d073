/// Ops over a batch whose rows have different adapters (Punica's SGMV and BGMV, forward and back).
#pragma once

#include <cstdint>
#include <string>

#include "native/core/status.h"
#include "native/core/tensor_view.h"

namespace lowrank {

enum class Compute : uint8_t;

/// One adapter of a table and its rows: AdapterTable::rows[first, first + count). It has its own
/// rank.
struct AdapterRows {
  TensorView lora_a;     // [r, K]
  TensorView lora_b;     // [N, r]
  TensorView lora_bias;  // [1, N]  optional
  float scaling = 0;     // lora_alpha / r, or / sqrt(r)
  double dropout = 0;    // p of its gate
  int64_t first = 0;
  int64_t count = 0;
  int64_t h_begin = 0;  // element of the packed h where its [count, r] starts

  // For the backward pass. Absent outputs are not computed.
  TensorView d_lora_a;     // [r, K]  out, optional
  TensorView d_lora_b;     // [N, r]  out, optional
  TensorView d_lora_bias;  // [1, N]  out, optional, only with d_lora_b
  bool accumulate_d_lora_a = false;
  bool accumulate_d_lora_b = false;
  bool accumulate_d_lora_bias = false;

  int64_t r() const { return lora_b.cols; }
  /// Its h [count, r] in the packed h.
  TensorView HOf(const TensorView& packed) const {
    TensorView h = packed;
    h.rows = count;
    h.cols = r();
    if (h.data != nullptr) h.data = static_cast<float*>(h.data) + h_begin;
    return h;
  }
};

/// The adapters of a batch. A row of x has `slots` slots, each with an adapter or empty, and no
/// adapter twice. A filled slot is an entry. Entries are sorted by adapter, and by ascending row
/// within each. The terms of a row are added in the order of `adapters`. OpRefs::tables keeps the
/// arrays.
struct AdapterTable {
  const AdapterRows* adapters = nullptr;
  int64_t count = 0;
  const int32_t* rows = nullptr;   // of each entry: its row
  const int32_t* gates = nullptr;  // of each entry: its element of row_scale; `rows` with one slot
  int64_t row_count = 0;           // entries
  int64_t slots = 1;
  int64_t h_elems = 0;  // Σ count · r
};

/// With e the adapters of row m and g = row_scale[m, the slot of e] (1 if it is not given):
///   y[m] = x[m] · dequant(w)ᵀ + bias + Σ_e g · scaling_e · (h_e · lora_b_eᵀ + lora_bias_e)
///   h_e  = (gate_e ⊙ x[m]) · lora_a_eᵀ
/// The gate is that of LoraForwardOp with the adapter's own p, by element (m, k) of x and one seed.
struct GroupedForwardOp {
  static constexpr const char* kName = "groupedForward";
  TensorView x;     // [M, K]  f16 | bf16 | f32
  WeightView w;     // [N, K]
  TensorView bias;  // [1, N]  optional
  AdapterTable table;
  TensorView row_scale;  // [1, M · slots]  optional
  TensorView h;          // [1, h_elems]  f32, out: without g
  TensorView y;          // [M, N]  out, dtype of x
  uint64_t seed = 0;
  TensorView mask;    // [M, K]  optional: replaces the generator, for all adapters
  Compute compute{};  // of the base product
  Status Check() const;
  std::string Describe() const;
};

/// With u_e = dy[m] · lora_b_e and dh_e = g · scaling_e · u_e over the rows m of adapter e:
///   dx[m]         = dy[m] · dequant(w) + Σ_e gate_e ⊙ (dh_e · lora_a_e)   [M, K]
///   d_lora_a_e    = dh_eᵀ · (gate_e ⊙ x)      d_lora_b_e = scaling_e · (g ⊙ dy)ᵀ · h_e
///   d_lora_bias_e = scaling_e · Σ g · dy      d_bias     = Σ over all rows of dy
/// d_row_scale = scaling_e · (u_e · h_e + dy[m] · lora_bias_e), 0 for an empty slot
/// accumulate_<output> as in LoraBackwardOp.
struct GroupedBackwardOp {
  static constexpr const char* kName = "groupedBackward";
  TensorView dy;  // [M, N]
  TensorView x;   // [M, K]  needed for a d_lora_a
  WeightView w;   // [N, K]  needed for dx
  AdapterTable table;
  TensorView row_scale;    // [1, M · slots]  optional
  TensorView h;            // [1, h_elems]  f32, needed for a d_lora_b and for d_row_scale
  TensorView dx;           // [M, K]  out, optional, dtype of dy
  TensorView d_bias;       // [1, N]  out, optional
  TensorView d_row_scale;  // [1, M · slots]  out, optional, only with row_scale
  bool accumulate_dx = false;
  bool accumulate_d_bias = false;
  bool accumulate_d_row_scale = false;
  int64_t in_features = 0;  // K
  uint64_t seed = 0;
  TensorView mask;  // [M, K]  optional
  Status Check() const;
  std::string Describe() const;
};

}  // namespace lowrank
