/* What a decoder has around its linear layers. Indices are int32 tensors on the host. */
#ifndef LOWRANK_MODEL_H
#define LOWRANK_MODEL_H

#include "weight.h"

#ifdef __cplusplus
extern "C" {
#endif

/* y[m] = scale · table[ids[m]] */
typedef struct {
  size_t size;
  uint32_t device;
  uint32_t flags; /* 0 */
  void* stream;
  const DLTensor* ids;   /* [M]  int32, from 0 to V - 1, or -1: a row of zeros */
  lowrank_weight* table; /* [V, D] */
  float scale;
  uint32_t reserved; /* 0 */
  DLTensor* y;       /* [M, D]  out */
} lowrank_embedding_args;
LOWRANK_API int32_t lowrank_embedding(const lowrank_embedding_args* args);

enum {
  LOWRANK_GAIN_PLUS_ONE = 1 /* the gain is 1 + g */
};

/* With s = x + residual, or x: y = s · inv_rms · g, inv_rms = (mean s² + eps)^-½ of each row */
typedef struct {
  size_t size;
  uint32_t device;
  uint32_t flags; /* LOWRANK_GAIN_PLUS_ONE */
  void* stream;
  const DLTensor* x;        /* [M, D] */
  const DLTensor* residual; /* [M, D]  optional */
  const DLTensor* g;        /* [D] */
  float eps;
  uint32_t reserved; /* 0 */
  DLTensor* sum;     /* [M, D]  out, dtype of x: s; exactly with residual */
  DLTensor* y;       /* [M, D]  out, dtype of x */
  DLTensor* inv_rms; /* [M]  out, optional, float32 */
} lowrank_rms_norm_args;
LOWRANK_API int32_t lowrank_rms_norm(const lowrank_rms_norm_args* args);

/* With u = g ⊙ dy: dx = inv_rms · u - s · inv_rms³ · (Σ s · u) / D + d_sum, dg = Σₘ dy ⊙ s ·
 * inv_rms */
typedef struct {
  size_t size;
  uint32_t device;
  uint32_t flags; /* LOWRANK_GAIN_PLUS_ONE */
  void* stream;
  const DLTensor* dy;      /* [M, D] */
  const DLTensor* s;       /* [M, D]  x, or `sum` of the forward pass */
  const DLTensor* g;       /* [D] */
  const DLTensor* inv_rms; /* [M] */
  const DLTensor* d_sum;   /* [M, D]  optional: the gradient of `sum` */
  DLTensor* dx;            /* [M, D]  out, optional, dtype of s */
  DLTensor* dg;            /* [D]  out, optional, float32 */
} lowrank_rms_norm_backward_args;
LOWRANK_API int32_t lowrank_rms_norm_backward(const lowrank_rms_norm_backward_args* args);

/* losses[m] = log Σᵥ exp z[m, v] - z[m, targets[m]], z = x · headᵀ, without all of z in memory at
 * once. dx[m] = scale · weights[m] · (softmax(z[m]) - onehot) · head */
typedef struct {
  size_t size;
  uint32_t device;
  uint32_t flags; /* 0 */
  void* stream;
  const DLTensor* x;       /* [M, K] */
  lowrank_weight* head;    /* [V, K] */
  const DLTensor* targets; /* [M]  int32, from 0 to V - 1, or -1: no loss */
  const DLTensor* weights; /* [M]  float32, optional: 1 */
  float scale;
  float softcap;    /* z is softcap · tanh(z / softcap); 0: it is not */
  DLTensor* losses; /* [M]  out, float32 */
  DLTensor* dx;     /* [M, K]  out, optional, dtype of x */
} lowrank_linear_cross_entropy_args;
LOWRANK_API int32_t lowrank_linear_cross_entropy(const lowrank_linear_cross_entropy_args* args);

/* Causal attention of grouped heads, with M = sequences · T rows: o[t] = Σᵢ softmax(scale · q[t] ·
 * k[i]) · v[i] over the rows i <= t of the sequence. With rope, q and k are turned first: row p of
 * it has rot / 2 cosines, then as many sines. */
typedef struct {
  size_t size;
  uint32_t device;
  uint32_t flags; /* 0 */
  void* stream;
  const DLTensor* q;     /* [M, heads · head_dim] */
  const DLTensor* k;     /* [M, kv_heads · head_dim]  dtype of q */
  const DLTensor* v;     /* [M, kv_heads · head_dim]  dtype of q */
  const DLTensor* rope;  /* [positions, rot]  float32, optional */
  const DLTensor* sinks; /* [heads]  float32, optional: one more term e^sink in the sum of a head */
  int64_t sequences;
  int64_t heads;
  int64_t kv_heads; /* divides heads */
  int64_t head_dim; /* even, up to 256 */
  int64_t window;   /* 0, or how many rows a row sees, itself included */
  float scale;      /* head_dim^-½ as a rule */
  float softcap;    /* 0, or scores are softcap · tanh(score / softcap) */
  DLTensor* o;      /* [M, heads · head_dim]  out, dtype of q */
  DLTensor* lse;    /* [heads, M]  out, optional, float32: for the backward pass */
} lowrank_attention_args;
LOWRANK_API int32_t lowrank_attention(const lowrank_attention_args* args);

/* The gradients of lowrank_attention, whose fields these are. */
typedef struct {
  size_t size;
  uint32_t device;
  uint32_t flags; /* 0 */
  void* stream;
  const DLTensor* q;
  const DLTensor* k;
  const DLTensor* v;
  const DLTensor* rope;
  const DLTensor* o;
  const DLTensor* lse;
  const DLTensor* d_o; /* [M, heads · head_dim] */
  int64_t sequences;
  int64_t heads;
  int64_t kv_heads;
  int64_t head_dim;
  int64_t window;
  float scale;
  float softcap;
  DLTensor* dq; /* as q, out, dtype of q */
  DLTensor* dk; /* as k, out, dtype of q */
  DLTensor* dv; /* as v, out, dtype of q */
} lowrank_attention_backward_args;
LOWRANK_API int32_t lowrank_attention_backward(const lowrank_attention_backward_args* args);

#ifdef __cplusplus
}
#endif
#endif
