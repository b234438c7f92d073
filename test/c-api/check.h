/* What the suites share: expectations, numbers, tensors over arrays, and formulas in double. */
#ifndef LOWRANK_TEST_CHECK_H
#define LOWRANK_TEST_CHECK_H

#include <lowrank.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern int failures;

#define EXPECT(condition, ...)                                   \
  do {                                                           \
    if (!(condition)) {                                          \
      failures++;                                                \
      printf("FAILED %s:%d %s: ", __FILE__, __LINE__, #condition); \
      printf(__VA_ARGS__);                                       \
      printf("\n");                                              \
    }                                                            \
  } while (0)

#define OK(call)                                                                    \
  do {                                                                              \
    const int32_t ok_code = (call);                                                 \
    EXPECT(ok_code == LOWRANK_OK, "%s %s", lowrank_code_name(ok_code), lowrank_last_error()); \
  } while (0)

/* The call fails with `code`, and its sentence holds each of two texts. */
#define REFUSED(call, code, text, other)                                                     \
  do {                                                                                       \
    const int32_t refused_code = (call);                                                     \
    const char *refused_text = lowrank_last_error();                                         \
    EXPECT(refused_code == (code), "%s: %s", lowrank_code_name(refused_code), refused_text); \
    EXPECT(strstr(refused_text, (text)) != NULL && strstr(refused_text, (other)) != NULL,    \
           "no \"%s\" and \"%s\" in \"%s\"", (text), (other), refused_text);                 \
  } while (0)

enum { MOST_DIMS = 4 };

/* A tensor, its shape, and its elements as doubles (exactly those of the memory). */
typedef struct {
  DLTensor t;
  int64_t shape[MOST_DIMS];
  double *values;
  void *memory;  /* t.data: guard bytes lie around it */
  int dtype;     /* what a test changes in t, these do not follow */
  int64_t count;
} Tensor;

enum { F32, BF16, F16, U8 };

/* Filled from `seed` with values of [-scale, scale]; with scale 0, with NaN. */
Tensor *tensor_new(int dtype, int64_t rows, int64_t cols, uint64_t seed, double scale);
/* The values of its memory now. */
void tensor_load(Tensor *tensor);
void tensor_free(Tensor *tensor);
/* Are the guard bytes around the memory whole? */
int tensor_guarded(const Tensor *tensor);
/* Does it still hold only the NaN of tensor_new? */
int tensor_untouched(const Tensor *tensor);
double at(const Tensor *tensor, int64_t row, int64_t col);

/* |value - exact| is within what `terms`, the sum of |products|, and the dtype of the result allow. */
int within(double value, double exact, double terms, int dtype);

/* int32 values of the caller as a tensor. */
DLTensor index_tensor(int32_t *values, int ndim, int64_t *shape);

void run_linear(uint32_t device);
void run_quantized(uint32_t device);
void run_ops(uint32_t device);
void run_model(uint32_t device);
void run_grouped(uint32_t device);
void run_experts(uint32_t device);
void run_refusals(void);
void run_hostile(void);
void run_lifetime(void);
void run_gpu(void);

#endif
