/* LoRA and QLoRA kernels for C: y = x · wᵀ + scaling · (x · lora_aᵀ) · lora_bᵀ and its gradients,
 * on tensors of the caller. Plain C11, and C++. docs/c-api.md shows how to use it.
 *
 * - Operands are `DLTensor`s, borrowed while a call runs: nothing is copied. They are row-major
 *   (`strides` NULL or contiguous), float32, bfloat16 or float16, and aligned to their elements.
 *   Leading dimensions count as rows: x [2, 3, K] is [6, K]. A vector [N] is the row [1, N].
 * - A call of an op takes one struct whose first field is its size. Zero the struct, set `size` to
 *   sizeof, and set what you need: a zero is "not given". Fields are only ever added at the end.
 * - Every function returns LOWRANK_OK or a code, and lowrank_last_error() explains it in a
 * sentence. After a refusal the outputs hold what they held before. Nothing throws, aborts or
 * exits.
 * - Any thread may call, also several at once. A call on host memory computes on the thread that
 *   makes it, helped by a pool. After fork() the child may call as well.
 */
#ifndef LOWRANK_H
#define LOWRANK_H

#include "lowrank/adapters.h"
#include "lowrank/core.h"
#include "lowrank/dlpack.h"
#include "lowrank/elementwise.h"
#include "lowrank/experts.h"
#include "lowrank/grouped.h"
#include "lowrank/linear.h"
#include "lowrank/model.h"
#include "lowrank/optimizer.h"
#include "lowrank/weight.h"

#endif
