/* Steps of an optimiser over many parameters. */
#ifndef LOWRANK_OPTIMIZER_H
#define LOWRANK_OPTIMIZER_H

#include "core.h"

#ifdef __cplusplus
extern "C" {
#endif

/* norm = (Σ g²)^½ over all elements of all tensors */
typedef struct {
  size_t size;
  uint32_t device;
  uint32_t flags; /* 0 */
  void* stream;
  const DLTensor* const* tensors; /* `count` pointers */
  int64_t count;                  /* from 1 on */
  DLTensor* norm;                 /* [1]  out, float32 */
} lowrank_global_norm_args;
LOWRANK_API int32_t lowrank_global_norm(const lowrank_global_norm_args* args);

/* A parameter, its gradient and its moments, all of one shape. */
typedef struct {
  size_t size;
  DLTensor* p; /* updated */
  const DLTensor* g;
  DLTensor* m;    /* float32, updated */
  DLTensor* v;    /* float32, updated */
  float lr_scale; /* times lr: 1 as a rule */
  float weight_decay;
} lowrank_parameter;

/* One step of AdamW (Loshchilov and Hutter, 2019, arXiv:1711.05101). If the norm is not finite,
 * nothing is written. */
typedef struct {
  size_t size;
  uint32_t device;
  uint32_t flags; /* 0 */
  void* stream;
  lowrank_parameter* const* parameters; /* `count` pointers */
  int64_t count;                        /* from 1 on */
  double beta1;                         /* 0.9 */
  double beta2;                         /* 0.999 */
  float eps;                            /* 1e-8 */
  float lr;
  int64_t step;         /* the number of this step, from 1 on */
  const DLTensor* norm; /* [1]  optional: lowrank_global_norm of the gradients */
  float max_norm;       /* with norm: they are scaled down to it; 0: they are not */
  uint32_t reserved;    /* 0 */
} lowrank_adamw_step_args;
LOWRANK_API int32_t lowrank_adamw_step(const lowrank_adamw_step_args* args);

#ifdef __cplusplus
}
#endif
#endif
