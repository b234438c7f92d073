/* Element by element, sums, random numbers, and products of blocks. */
#ifndef LOWRANK_ELEMENTWISE_H
#define LOWRANK_ELEMENTWISE_H

#include "core.h"

#ifdef __cplusplus
extern "C" {
#endif

/* y = x, rounded once to the dtype of y */
typedef struct {
  size_t size;
  uint32_t device;
  uint32_t flags; /* 0 */
  void* stream;
  const DLTensor* x;
  DLTensor* y; /* out, as many rows and columns */
} lowrank_cast_args;
LOWRANK_API int32_t lowrank_cast(const lowrank_cast_args* args);

/* y = alpha · a ⊙ b + beta · c. Without b it counts as 1, without c as 0. Dimensions of size 1 in b
 * and c are repeated. */
typedef struct {
  size_t size;
  uint32_t device;
  uint32_t flags; /* 0 */
  void* stream;
  const DLTensor* a; /* [M, N] */
  const DLTensor* b; /* [M or 1, N or 1]  optional */
  const DLTensor* c; /* [M or 1, N or 1]  optional */
  float alpha;
  float beta;
  DLTensor* y; /* [M, N]  out */
} lowrank_multiply_add_args;
LOWRANK_API int32_t lowrank_multiply_add(const lowrank_multiply_add_args* args);

/* y = f(x). `function`: reciprocal, sqrt, rsqrt, exp, log, tanh, sigmoid, relu, abs, sign, square,
 * sin or cos. */
typedef struct {
  size_t size;
  uint32_t device;
  uint32_t flags; /* 0 */
  void* stream;
  const char* function;
  const DLTensor* x;
  DLTensor* y; /* out, as many rows and columns */
} lowrank_map_args;
LOWRANK_API int32_t lowrank_map(const lowrank_map_args* args);

/* y = f(gate) ⊙ up. `function`: silu (SwiGLU), gelu, gelu-tanh or silu-clamped. */
typedef struct {
  size_t size;
  uint32_t device;
  uint32_t flags; /* 0 */
  void* stream;
  const char* function;
  const DLTensor* gate; /* [M, N] */
  const DLTensor* up;   /* [M, N] */
  DLTensor* y;          /* [M, N]  out */
} lowrank_gated_activation_args;
LOWRANK_API int32_t lowrank_gated_activation(const lowrank_gated_activation_args* args);

/* d_gate = dy ⊙ up ⊙ f'(gate), d_up = dy ⊙ f(gate) */
typedef struct {
  size_t size;
  uint32_t device;
  uint32_t flags; /* 0 */
  void* stream;
  const char* function;
  const DLTensor* dy;   /* [M, N] */
  const DLTensor* gate; /* [M, N] */
  const DLTensor* up;   /* [M, N] */
  DLTensor* d_gate;     /* [M, N]  out */
  DLTensor* d_up;       /* [M, N]  out */
} lowrank_gated_activation_backward_args;
LOWRANK_API int32_t
lowrank_gated_activation_backward(const lowrank_gated_activation_backward_args* args);

/* axis 0: y[n] = Σₘ a ⊙ b; axis 1: y[m] = Σₙ a ⊙ b. Without b the sum of a. */
typedef struct {
  size_t size;
  uint32_t device;
  uint32_t flags; /* 0 */
  void* stream;
  const DLTensor* a; /* [M, N] */
  const DLTensor* b; /* [M or 1, N or 1]  optional */
  int32_t axis;      /* 0 or 1 */
  uint32_t reserved; /* 0 */
  DLTensor* y;       /* [N] or [M]  out, float32 */
} lowrank_sum_product_args;
LOWRANK_API int32_t lowrank_sum_product(const lowrank_sum_product_args* args);

/* Kinds of random numbers. Element i is a function of (seed, i) alone. */
enum {
  LOWRANK_NORMAL = 0,  /* mean a, standard deviation b */
  LOWRANK_UNIFORM = 1, /* from a - b to a + b */
  LOWRANK_KEEP = 2     /* the mask of dropout: 0 with probability a, else 1 */
};

typedef struct {
  size_t size;
  uint32_t device;
  uint32_t flags; /* 0 */
  void* stream;
  int32_t kind;
  uint32_t reserved; /* 0 */
  uint64_t seed;
  double a;
  double b;
  DLTensor* y; /* out */
} lowrank_random_args;
LOWRANK_API int32_t lowrank_random(const lowrank_random_args* args);

/* y[m, j] = alpha · Σ x[m, t] + beta · c[m, j] over the t of list j: index[begin[j]] to
 * index[begin[j + 1] - 1], ascending. Without begin, index [J] has the one t of each j, or -1:
 * none. */
typedef struct {
  size_t size;
  uint32_t device;
  uint32_t flags; /* 0 */
  void* stream;
  const DLTensor* x;     /* [M, K] */
  const DLTensor* begin; /* [J + 1]  int32 on the host, optional */
  const DLTensor* index; /* int32 on the host */
  const DLTensor* c;     /* [M, J]  optional */
  float alpha;
  float beta;
  DLTensor* y; /* [M, J]  out */
} lowrank_map_features_args;
LOWRANK_API int32_t lowrank_map_features(const lowrank_map_features_args* args);

/* y[m, g, :] = x[m, g, :] · w[g]ᵀ for each of G blocks; with LOWRANK_BLOCK_INPUT_GRAD x and y are
 * dy [M, G, N] and dx [M, G, K]: dx[m, g, :] = dy[m, g, :] · w[g]. */
enum { LOWRANK_BLOCK_INPUT_GRAD = 1 };
typedef struct {
  size_t size;
  uint32_t device;
  uint32_t flags; /* LOWRANK_BLOCK_INPUT_GRAD */
  void* stream;
  const DLTensor* x; /* [M, G, K] */
  const DLTensor* w; /* [G, N, K] */
  DLTensor* y;       /* [M, G, N]  out, dtype of x */
} lowrank_block_matmul_args;
LOWRANK_API int32_t lowrank_block_matmul(const lowrank_block_matmul_args* args);

/* dw[g] = Σₘ dy[m, g, :]ᵀ · x[m, g, :] */
typedef struct {
  size_t size;
  uint32_t device;
  uint32_t flags; /* 0 */
  void* stream;
  const DLTensor* dy; /* [M, G, N] */
  const DLTensor* x;  /* [M, G, K] */
  DLTensor* dw;       /* [G, N, K]  out, float32 */
} lowrank_block_weight_grad_args;
LOWRANK_API int32_t lowrank_block_weight_grad(const lowrank_block_weight_grad_args* args);

#ifdef __cplusplus
}
#endif
#endif
