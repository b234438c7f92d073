/* A layer of experts: which experts each row goes to, the product of every expert with its own
 * rows, and the sum of what the experts of a row give. A slot is one pair of a row and one of its
 * experts. */
#ifndef LOWRANK_EXPERTS_H
#define LOWRANK_EXPERTS_H

#include "core.h"
#include "weight.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The k largest of each row of logits, the largest first, and their gates: the softmax of the
 * chosen ones, or with LOWRANK_SOFTMAX_OF_ALL their part of the softmax of all. */
enum { LOWRANK_SOFTMAX_OF_ALL = 1 };
typedef struct {
  size_t size;
  uint32_t device;
  uint32_t flags; /* LOWRANK_SOFTMAX_OF_ALL */
  void* stream;
  const DLTensor* logits; /* [M, E] */
  DLTensor* experts;      /* [M, k]  out, int32 on the host */
  DLTensor* gates;        /* [M, k]  out, float32 */
} lowrank_select_experts_args;
LOWRANK_API int32_t lowrank_select_experts(const lowrank_select_experts_args* args);

typedef struct {
  size_t size;
  uint32_t device;
  uint32_t flags; /* as in lowrank_select_experts */
  void* stream;
  const DLTensor* d_gates; /* [M, k]  float32 */
  const DLTensor* logits;  /* [M, E] */
  const DLTensor* experts; /* [M, k]  int32 on the host */
  const DLTensor* gates;   /* [M, k]  float32 */
  DLTensor* d_logits;      /* [M, E]  out, dtype of logits */
} lowrank_select_experts_backward_args;
LOWRANK_API int32_t
lowrank_select_experts_backward(const lowrank_select_experts_backward_args* args);

/* The slots, sorted by expert and then by row: S = M · k of them. Slots without an expert (-1) are
 * dropped: they come last, from offsets[E] on. All three are int32 on the host. */
typedef struct {
  size_t size;
  DLTensor* order;   /* [S]  of slot s the pair m · k + j */
  DLTensor* inverse; /* [S]  of the pair m · k + j the slot */
  DLTensor* offsets; /* [E + 1]  the first slot of each expert */
  int64_t k;
} lowrank_route;

/* Fills a route from the experts of each row. */
typedef struct {
  size_t size;
  uint32_t device;
  uint32_t flags; /* 0 */
  void* stream;
  const DLTensor* experts;    /* [M, k]  int32 on the host, from 0 to E - 1, or -1 */
  const lowrank_route* route; /* its tensors are out */
} lowrank_route_rows_args;
LOWRANK_API int32_t lowrank_route_rows(const lowrank_route_rows_args* args);

/* Flags of the products. */
enum { LOWRANK_X_BY_SLOT = 256 }; /* x has a row for each slot, not for each row of the batch */

/* y[s] = x[row of s] · dequant(w_e)ᵀ + bias_e + scaling · (x[row of s] · lora_a_eᵀ) · lora_b_eᵀ for
 * the slots s of each expert e, and 0 for a dropped slot. */
typedef struct {
  size_t size;
  uint32_t device;
  uint32_t flags; /* LOWRANK_X_BY_SLOT */
  void* stream;
  const DLTensor* x;    /* [M, K], or [S, K] with LOWRANK_X_BY_SLOT */
  lowrank_weight* w;    /* [E · N, K]  expert e has rows e · N to e · N + N - 1 */
  const DLTensor* bias; /* [E, N]  optional */
  const lowrank_route* route;
  const DLTensor* lora_a; /* [E · r, K], or [r, K] for all experts; optional */
  const DLTensor* lora_b; /* [E · N, r], or [N, r] for all experts */
  float scaling;
  uint32_t reserved; /* 0 */
  DLTensor* h;       /* [S, r]  out, float32, with lora_a */
  DLTensor* y;       /* [S, N]  out, dtype of x */
} lowrank_experts_matmul_args;
LOWRANK_API int32_t lowrank_experts_matmul(const lowrank_experts_matmul_args* args);

/* With dh[s] = scaling · dy[s] · lora_b_e of a slot s of expert e:
 *   dx[s]      = dy[s] · dequant(w_e) + dh[s] · lora_a_e
 *   d_lora_a_e = Σₛ dh[s]ᵀ · x[row of s]      d_lora_b_e = scaling · Σₛ dy[s]ᵀ · h[s]
 * over the slots of e, or over all for a factor that the experts share. An output that is NULL is
 * not computed. dx is by slot: lowrank_combine_rows without gates sums it for each row of x. */
typedef struct {
  size_t size;
  uint32_t device;
  uint32_t flags; /* as in the forward pass */
  void* stream;
  const DLTensor* dy; /* [S, N] */
  lowrank_weight* w;  /* [E · N, K] */
  const DLTensor* x;  /* as in the forward pass; for d_lora_a */
  const lowrank_route* route;
  const DLTensor* lora_a; /* these two as in the forward pass */
  const DLTensor* lora_b;
  const DLTensor* h; /* [S, r]  for d_lora_b: that of the forward pass */
  float scaling;
  uint32_t reserved;  /* 0 */
  DLTensor* dx;       /* [S, K]  out, optional, dtype of dy */
  DLTensor* d_lora_a; /* the shape of lora_a  out, optional */
  DLTensor* d_lora_b; /* the shape of lora_b  out, optional */
} lowrank_experts_matmul_backward_args;
LOWRANK_API int32_t
lowrank_experts_matmul_backward(const lowrank_experts_matmul_backward_args* args);

/* out[m] = Σⱼ gates[m, j] · y[slot of m, j], with gates of 1 if there are none. A dropped slot adds
 * nothing. */
typedef struct {
  size_t size;
  uint32_t device;
  uint32_t flags; /* 0 */
  void* stream;
  const DLTensor* y; /* [S, N] */
  const lowrank_route* route;
  const DLTensor* gates; /* [M, k]  float32, optional */
  DLTensor* out;         /* [M, N]  out, dtype of y */
} lowrank_combine_rows_args;
LOWRANK_API int32_t lowrank_combine_rows(const lowrank_combine_rows_args* args);

/* dy[slot of m, j] = gates[m, j] · d_out[m] and d_gates[m, j] = d_out[m] · y[slot of m, j], both 0
 * for a dropped slot. An output that is NULL is not computed. */
typedef struct {
  size_t size;
  uint32_t device;
  uint32_t flags; /* 0 */
  void* stream;
  const DLTensor* d_out; /* [M, N] */
  const DLTensor* y;     /* [S, N]  for d_gates */
  const lowrank_route* route;
  const DLTensor* gates; /* [M, k]  float32, optional */
  DLTensor* dy;          /* [S, N]  out, optional */
  DLTensor* d_gates;     /* [M, k]  out, optional, float32 */
} lowrank_combine_rows_backward_args;
LOWRANK_API int32_t lowrank_combine_rows_backward(const lowrank_combine_rows_backward_args* args);

#ifdef __cplusplus
}
#endif
#endif
