/* A linear layer with a frozen weight, alone and with a low-rank adapter, forward and backward. M,
 * N and K are tokens, outputs and inputs, r is the rank of the adapter. */
#ifndef LOWRANK_LINEAR_H
#define LOWRANK_LINEAR_H

#include "weight.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Flags of forward products. */
enum {
  LOWRANK_COMPUTE_INT8 = 1 /* the base product of a 4-bit or rowwise weight in int8 */
};

/* y = x · dequant(w)ᵀ + bias */
typedef struct {
  size_t size;
  uint32_t device;
  uint32_t flags; /* LOWRANK_COMPUTE_INT8 */
  void* stream;   /* NULL: the call returns when y is written. A CUDA stream: when it is submitted
                     there */
  const DLTensor* x;    /* [M, K] */
  lowrank_weight* w;    /* [N, K] */
  const DLTensor* bias; /* [N]  optional */
  DLTensor* y;          /* [M, N]  out, dtype of x */
} lowrank_matmul_args;
LOWRANK_API int32_t lowrank_matmul(const lowrank_matmul_args* args);

/* dx = dy · dequant(w) */
typedef struct {
  size_t size;
  uint32_t device;
  uint32_t flags; /* 0 */
  void* stream;
  const DLTensor* dy; /* [M, N] */
  lowrank_weight* w;  /* [N, K] */
  DLTensor* dx;       /* [M, K]  out, dtype of dy */
} lowrank_matmul_input_grad_args;
LOWRANK_API int32_t lowrank_matmul_input_grad(const lowrank_matmul_input_grad_args* args);

/* y = x · dequant(w)ᵀ + bias + scaling · ((gate ⊙ x) · lora_aᵀ · lora_bᵀ + lora_bias)
 *
 * gate(m, k) is 0 for a dropped element of x and 1 / (1 - dropout) for a kept one. It is a function
 * of (seed, m · K + k) alone, or comes from dropout_mask, where 0 is dropped. */
typedef struct {
  size_t size;
  uint32_t device;
  uint32_t flags; /* LOWRANK_COMPUTE_INT8 */
  void* stream;
  const DLTensor* x;            /* [M, K] */
  lowrank_weight* w;            /* [N, K] */
  const DLTensor* bias;         /* [N]  optional */
  const DLTensor* lora_a;       /* [r, K] */
  const DLTensor* lora_b;       /* [N, r] */
  const DLTensor* lora_bias;    /* [N]  optional */
  const DLTensor* dropout_mask; /* [M, K]  optional */
  double dropout;               /* in [0, 1) */
  uint64_t seed;
  float scaling;     /* lora_alpha / r */
  uint32_t reserved; /* 0 */
  DLTensor* h;       /* [M, r]  out, float32: (gate ⊙ x) · lora_aᵀ, for the backward pass */
  DLTensor* y;       /* [M, N]  out, dtype of x */
} lowrank_lora_forward_args;
LOWRANK_API int32_t lowrank_lora_forward(const lowrank_lora_forward_args* args);

/* Flags of backward passes: add to the old value of an output. */
enum {
  LOWRANK_ADD_TO_DX = 1,
  LOWRANK_ADD_TO_D_LORA_A = 2,
  LOWRANK_ADD_TO_D_LORA_B = 4,
  LOWRANK_ADD_TO_D_BIAS = 8,
  LOWRANK_ADD_TO_D_LORA_BIAS = 16
};

/* With dh = scaling · dy · lora_b:
 *   dx          = dy · dequant(w) + gate ⊙ (dh · lora_a)
 *   d_lora_a    = dhᵀ · (gate ⊙ x)      d_lora_b    = scaling · dyᵀ · h
 *   d_bias      = Σₘ dy                 d_lora_bias = scaling · Σₘ dy
 * An output that is NULL is not computed. */
typedef struct {
  size_t size;
  uint32_t device;
  uint32_t flags; /* LOWRANK_ADD_TO_... */
  void* stream;
  const DLTensor* dy;           /* [M, N] */
  const DLTensor* x;            /* [M, K]  for d_lora_a */
  lowrank_weight* w;            /* [N, K]  for dx */
  const DLTensor* lora_a;       /* [r, K] */
  const DLTensor* lora_b;       /* [N, r] */
  const DLTensor* h;            /* [M, r]  for d_lora_b: that of the forward pass */
  const DLTensor* dropout_mask; /* these three as in the forward pass */
  double dropout;
  uint64_t seed;
  float scaling;
  uint32_t reserved;     /* 0 */
  DLTensor* dx;          /* [M, K]  out, optional, dtype of dy */
  DLTensor* d_lora_a;    /* [r, K]  out, optional */
  DLTensor* d_lora_b;    /* [N, r]  out, optional */
  DLTensor* d_bias;      /* [N]  out, optional */
  DLTensor* d_lora_bias; /* [N]  out, optional */
} lowrank_lora_backward_args;
LOWRANK_API int32_t lowrank_lora_backward(const lowrank_lora_backward_args* args);

#ifdef __cplusplus
}
#endif
#endif
