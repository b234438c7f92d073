/* More around a layer with an adapter: several layers of one x, the halves of an adapter by
 * themselves, gradients of dense weights, and norms of weights. */
#ifndef LOWRANK_ADAPTERS_H
#define LOWRANK_ADAPTERS_H

#include "linear.h"

#ifdef __cplusplus
extern "C" {
#endif

/* One of the layers that read the same x: its fields are those of lowrank_lora_forward_args.
 * Without lora_a it is only the base product, and lora_b, lora_bias and h are NULL too. */
typedef struct {
  size_t size;
  lowrank_weight* w;
  const DLTensor* bias;
  const DLTensor* lora_a;
  const DLTensor* lora_b;
  const DLTensor* lora_bias;
  const DLTensor* dropout_mask;
  double dropout;
  uint64_t seed;
  float scaling;
  uint32_t flags; /* LOWRANK_COMPUTE_INT8 */
  DLTensor* h;
  DLTensor* y;
} lowrank_projection;

/* Query, key and value, or gate and up, in one call, with the bits of lowrank_lora_forward for
 * each. The backward pass is lowrank_lora_backward of each, from the second one on with
 * LOWRANK_ADD_TO_DX. */
typedef struct {
  size_t size;
  uint32_t device;
  uint32_t flags; /* 0 */
  void* stream;
  const DLTensor* x;                            /* [M, K] */
  const lowrank_projection* const* projections; /* `count` pointers */
  int64_t count;                                /* 1 to 8 */
} lowrank_lora_forward_many_args;
LOWRANK_API int32_t lowrank_lora_forward_many(const lowrank_lora_forward_many_args* args);

/* y = silu(gate) ⊙ up for two projections of one x. The `y` of both, [M, N] and for the backward
 * pass, are optional: both or none. */
typedef struct {
  size_t size;
  uint32_t device;
  uint32_t flags; /* 0 */
  void* stream;
  const DLTensor* x; /* [M, K] */
  const lowrank_projection* gate;
  const lowrank_projection* up;
  DLTensor* y; /* [M, N]  out, dtype of x */
} lowrank_lora_forward_swiglu_args;
LOWRANK_API int32_t lowrank_lora_forward_swiglu(const lowrank_lora_forward_swiglu_args* args);

/* h = scaling · (gate ⊙ x) · lora_aᵀ */
typedef struct {
  size_t size;
  uint32_t device;
  uint32_t flags; /* 0 */
  void* stream;
  const DLTensor* x;            /* [M, K] */
  const DLTensor* lora_a;       /* [r, K] */
  const DLTensor* dropout_mask; /* [M, K]  optional */
  double dropout;
  uint64_t seed;
  float scaling;
  uint32_t reserved; /* 0 */
  DLTensor* h;       /* [M, r]  out, float32 */
} lowrank_lora_shrink_args;
LOWRANK_API int32_t lowrank_lora_shrink(const lowrank_lora_shrink_args* args);

/* dx = dy · dequant(w) + gate ⊙ (scaling · dh · lora_a), d_lora_a = scaling · dhᵀ · (gate ⊙ x) */
typedef struct {
  size_t size;
  uint32_t device;
  uint32_t flags; /* LOWRANK_ADD_TO_DX, LOWRANK_ADD_TO_D_LORA_A */
  void* stream;
  const DLTensor* dy;           /* [M, N]  for dx */
  lowrank_weight* w;            /* [N, K]  for dx */
  const DLTensor* dh;           /* [M, r]  float32 */
  const DLTensor* x;            /* [M, K]  for d_lora_a */
  const DLTensor* lora_a;       /* [r, K] */
  const DLTensor* dropout_mask; /* [M, K]  optional */
  double dropout;
  uint64_t seed;
  float scaling;
  uint32_t reserved;  /* 0 */
  DLTensor* dx;       /* [M, K]  out, optional, dtype of dy */
  DLTensor* d_lora_a; /* [r, K]  out, optional */
} lowrank_lora_shrink_backward_args;
LOWRANK_API int32_t lowrank_lora_shrink_backward(const lowrank_lora_shrink_backward_args* args);

/* y = x · dequant(w)ᵀ + bias + scaling · h · lora_bᵀ */
typedef struct {
  size_t size;
  uint32_t device;
  uint32_t flags; /* LOWRANK_COMPUTE_INT8 */
  void* stream;
  const DLTensor* x;      /* [M, K] */
  lowrank_weight* w;      /* [N, K] */
  const DLTensor* bias;   /* [N]  optional */
  const DLTensor* h;      /* [M, r]  float32 */
  const DLTensor* lora_b; /* [N, r] */
  float scaling;
  uint32_t reserved; /* 0 */
  DLTensor* y;       /* [M, N]  out, dtype of x */
} lowrank_lora_expand_args;
LOWRANK_API int32_t lowrank_lora_expand(const lowrank_lora_expand_args* args);

/* dh = scaling · dy · lora_b, d_lora_b = scaling · dyᵀ · h, d_bias = Σₘ dy */
typedef struct {
  size_t size;
  uint32_t device;
  uint32_t flags; /* LOWRANK_ADD_TO_DH, LOWRANK_ADD_TO_D_LORA_B, LOWRANK_ADD_TO_D_BIAS */
  void* stream;
  const DLTensor* dy;     /* [M, N] */
  const DLTensor* h;      /* [M, r]  float32, for d_lora_b */
  const DLTensor* lora_b; /* [N, r] */
  float scaling;
  uint32_t reserved;  /* 0 */
  DLTensor* dh;       /* [M, r]  out, optional, float32 */
  DLTensor* d_lora_b; /* [N, r]  out, optional */
  DLTensor* d_bias;   /* [N]  out, optional */
} lowrank_lora_expand_backward_args;
LOWRANK_API int32_t lowrank_lora_expand_backward(const lowrank_lora_expand_backward_args* args);

/* More flags of backward passes. */
enum { LOWRANK_ADD_TO_DH = 32, LOWRANK_ADD_TO_DW = 64 };

/* dw = dyᵀ · x, of a dense weight that is trained */
typedef struct {
  size_t size;
  uint32_t device;
  uint32_t flags; /* LOWRANK_ADD_TO_DW */
  void* stream;
  const DLTensor* dy; /* [M, N] */
  const DLTensor* x;  /* [M, K] */
  DLTensor* dw;       /* [N, K]  out */
} lowrank_weight_grad_args;
LOWRANK_API int32_t lowrank_weight_grad(const lowrank_weight_grad_args* args);

/* norms[n] = Σₖ w[n, k]² */
typedef struct {
  size_t size;
  uint32_t device;
  uint32_t flags; /* 0 */
  void* stream;
  lowrank_weight* w; /* [N, K] */
  DLTensor* norms;   /* [N]  out, float32 */
} lowrank_weight_norms_args;
LOWRANK_API int32_t lowrank_weight_norms(const lowrank_weight_norms_args* args);

/* The Euclidean norms of the rows of w + scaling · lora_b · lora_a (DoRA), which is never made. */
typedef struct {
  size_t size;
  uint32_t device;
  uint32_t flags; /* 0 */
  void* stream;
  lowrank_weight* w;       /* [N, K] */
  const DLTensor* lora_a;  /* [r, K] */
  const DLTensor* lora_b;  /* [N, r] */
  const DLTensor* squares; /* [N]  float32: lowrank_weight_norms of w */
  float scaling;
  uint32_t reserved; /* 0 */
  DLTensor* norms;   /* [N]  out, float32 */
} lowrank_factored_norm_args;
LOWRANK_API int32_t lowrank_factored_norm(const lowrank_factored_norm_args* args);

#ifdef __cplusplus
}
#endif
#endif
