/* One base weight and many adapters: each row of a batch has its own adapter, or several, or none.
 */
#ifndef LOWRANK_GROUPED_H
#define LOWRANK_GROUPED_H

#include "linear.h"

#ifdef __cplusplus
extern "C" {
#endif

/* One adapter of a batch. Each has its own rank, scaling and dropout. The gradients are for the
 * backward pass: one that is NULL is not computed. */
typedef struct {
  size_t size;
  uint32_t flags;            /* backward: LOWRANK_ADD_TO_D_LORA_A, ..._D_LORA_B, ..._D_LORA_BIAS */
  float scaling;             /* lora_alpha / r */
  double dropout;            /* in [0, 1) */
  const DLTensor* lora_a;    /* [r, K] */
  const DLTensor* lora_b;    /* [N, r] */
  const DLTensor* lora_bias; /* [N]  optional */
  DLTensor* d_lora_a;        /* [r, K]  out, optional */
  DLTensor* d_lora_b;        /* [N, r]  out, optional */
  DLTensor* d_lora_bias;     /* [N]  out, optional, only with d_lora_b */
} lowrank_batch_adapter;

/* With e the adapters of row m and g = row_scale[m, slot of e], or 1 without row_scale:
 *   h_e  = (gate_e ⊙ x[m]) · lora_a_eᵀ
 *   y[m] = x[m] · dequant(w)ᵀ + bias + Σₑ g · scaling_e · (h_e · lora_b_eᵀ + lora_bias_e)
 *
 * `rows` says which adapter each slot of a row has: the index of the adapter, or -1 for none. A row
 * has no adapter twice. gate_e is the gate of lowrank_lora_forward with the adapter's own dropout,
 * for one seed. */
typedef struct {
  size_t size;
  uint32_t device;
  uint32_t flags; /* LOWRANK_COMPUTE_INT8 */
  void* stream;
  const DLTensor* x;                            /* [M, K] */
  lowrank_weight* w;                            /* [N, K] */
  const DLTensor* bias;                         /* [N]  optional */
  const lowrank_batch_adapter* const* adapters; /* `adapter_count` pointers */
  int64_t adapter_count;                        /* 0 and up */
  const DLTensor* rows;                         /* [M] or [M, slots]  int32 on the host */
  const DLTensor* row_scale;                    /* the shape of rows, optional */
  const DLTensor* dropout_mask;                 /* [M, K]  optional */
  uint64_t seed;
  DLTensor* h; /* [Σ count · r]  out, float32: of each adapter in turn its h_e [count, r], where
                  count is the number of its rows, in ascending order */
  DLTensor* y; /* [M, N]  out, dtype of x */
} lowrank_grouped_forward_args;
LOWRANK_API int32_t lowrank_grouped_forward(const lowrank_grouped_forward_args* args);

enum { LOWRANK_ADD_TO_D_ROW_SCALE = 128 };

/* With u_e = dy[m] · lora_b_e and dh_e = g · scaling_e · u_e over the rows m of adapter e:
 *   dx[m]         = dy[m] · dequant(w) + Σₑ gate_e ⊙ (dh_e · lora_a_e)
 *   d_lora_a_e    = dh_eᵀ · (gate_e ⊙ x)      d_lora_b_e = scaling_e · (g ⊙ dy)ᵀ · h_e
 *   d_lora_bias_e = scaling_e · Σ g · dy      d_bias     = Σ over all rows of dy
 *   d_row_scale   = scaling_e · (u_e · h_e + dy[m] · lora_bias_e), 0 for an empty slot
 * An output that is NULL is not computed. */
typedef struct {
  size_t size;
  uint32_t device;
  uint32_t flags; /* LOWRANK_ADD_TO_DX, LOWRANK_ADD_TO_D_BIAS, LOWRANK_ADD_TO_D_ROW_SCALE */
  void* stream;
  const DLTensor* dy; /* [M, N] */
  const DLTensor* x;  /* [M, K]  for a d_lora_a */
  lowrank_weight* w;  /* [N, K]  for dx */
  const DLTensor* h;  /* for a d_lora_b and d_row_scale: that of the forward pass */
  const lowrank_batch_adapter* const* adapters; /* these six as in the forward pass */
  int64_t adapter_count;
  const DLTensor* rows;
  const DLTensor* row_scale;
  const DLTensor* dropout_mask;
  uint64_t seed;
  int64_t in_features;   /* K */
  DLTensor* dx;          /* [M, K]  out, optional, dtype of dy */
  DLTensor* d_bias;      /* [N]  out, optional */
  DLTensor* d_row_scale; /* the shape of rows  out, optional, only with row_scale */
} lowrank_grouped_backward_args;
LOWRANK_API int32_t lowrank_grouped_backward(const lowrank_grouped_backward_args* args);

#ifdef __cplusplus
}
#endif
#endif
