/// Causal attention of grouped heads (FlashAttention-2, Dao, 2023, arXiv:2307.08691), with rotary
/// positions (Su et al., 2021, arXiv:2104.09864).
#pragma once

#include "native/core/status.h"
#include "native/core/tensor_view.h"

namespace lowrank {

constexpr int64_t kMostHeadDim = 256;

/// Heads side by side in a matrix: columns [first, first + heads · head_dim) of its rows.
struct HeadsView {
  TensorView matrix;
  int64_t first = 0;
};

/// What the passes share. Row m = b · T + t is row t of sequence b. Row i of a sequence is seen
/// from row t where i <= t, i > t - window, and i is at or behind the begin of t's document.
struct AttentionShape {
  int64_t sequences = 1;  // B; M = B · T
  int64_t heads = 0;
  int64_t kv_heads = 0;  // divides heads; head h reads key head h / (heads / kv_heads)
  int64_t head_dim = 0;  // even, up to kMostHeadDim
  float scale = 1;
  float softcap = 0;    // 0: none. Else scores are softcap · tanh(score / softcap)
  int64_t window = 0;   // 0: none. Else a row sees itself and window - 1 rows before it
  TensorView rope;      // [P, rot]  f32, optional: rot / 2 cosines, then as many sines
  IndexView documents;  // [M]  optional: the row of the sequence at which the row's document begins

  int64_t group() const { return heads / kv_heads; }
};

/// With q' and k' turned by the row's position p and rounded to their dtype,
///
///   q'[i] = q[i] · cos[p, i] - q[i + rot/2] · sin[p, i]        i < rot / 2
///   q'[i + rot/2] = q[i + rot/2] · cos[p, i] + q[i] · sin[p, i]
///   s[t, i] = cap(scale · q'[t] · k'[i])      lse[t] = log Σᵢ e^s[t, i]
///   o[t] = Σᵢ e^(s[t, i] - lse[t]) · v[i]     over the rows i that t sees
///
/// With sinks lse[t] = log (Σᵢ e^s[t, i] + e^sink), so that the backward pass needs none.
/// The position of a row is its distance from the begin of its document, or of its sequence. With a
/// cache it is past + t: k' and v are appended to the `past` rows that each sequence has there, and
/// all of them are seen.
struct AttentionOp {
  static constexpr const char* kName = "attention";
  AttentionShape shape;
  HeadsView q;         // [M, heads · head_dim]     any dtype
  HeadsView k;         // [M, kv_heads · head_dim]  dtype of q
  HeadsView v;         // [M, kv_heads · head_dim]  dtype of q
  TensorView k_cache;  // [B · capacity, kv_heads · head_dim]  dtype of q, in and out, optional
  TensorView v_cache;  // the same; present where k_cache is
  int64_t past = 0;    // rows of each sequence in the cache
  TensorView sinks;    // [1, heads]  f32, optional: e^sink of the head is one more term of a sum
  TensorView o;        // [M, heads · head_dim]  out, dtype of q
  TensorView lse;      // [heads, M]  f32, out, optional

  int64_t rows() const { return q.matrix.rows / shape.sequences; }  // T
  int64_t capacity() const { return k_cache.rows / shape.sequences; }
  Status Check() const;
  std::string Describe() const;
};

/// With p[t, i] = e^(s[t, i] - lse[t]) and D[t] = Σ o[t] · d_o[t]:
///
///   dv[i] = Σₜ p[t, i] · d_o[t]       ds[t, i] = p[t, i] · (d_o[t] · v[i] - D[t]) · cap'
///   dq'[t] = scale · Σᵢ ds[t, i] · k'[i]      dk'[i] = scale · Σₜ ds[t, i] · q'[t]
///
/// dq and dk are dq' and dk' turned back; cap' = 1 - (s / softcap)². dq, dk and dv may be columns
/// of one matrix.
struct AttentionBackwardOp {
  static constexpr const char* kName = "attentionBackward";
  AttentionShape shape;
  HeadsView q, k, v;  // as forward
  TensorView o;       // [M, heads · head_dim]  dtype of q
  TensorView lse;     // [heads, M]  f32
  TensorView d_o;     // [M, heads · head_dim]  any dtype
  HeadsView dq;       // out, dtype of q
  HeadsView dk, dv;   // out, dtype of q

  int64_t rows() const { return q.matrix.rows / shape.sequences; }
  Status Check() const;
  std::string Describe() const;
};

/// Of documents of `sequences` sequences of `rows` rows: the first entry that is neither its own
/// row nor the begin of the row before it, or -1.
int64_t FirstBadDocument(const IndexView& documents, int64_t sequences, int64_t rows);

/// The refusal of that entry.
Status RefuseDocument(const char* op, const AttentionShape& shape, int64_t entry);

}  // namespace lowrank
