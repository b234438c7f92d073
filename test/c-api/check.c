#include "check.h"

int failures = 0;

enum { GUARD = 64, GUARD_BYTE = 0xa5 };

static size_t size_of(int dtype) { return dtype == F32 ? 4 : dtype == U8 ? 1 : 2; }

static uint64_t next(uint64_t *state) {
  *state ^= *state << 13;
  *state ^= *state >> 7;
  *state ^= *state << 17;
  return *state;
}

static float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

static double decode(int dtype, const void *memory, int64_t i) {
  uint16_t half;
  float single;
  if (dtype == F32) {
    memcpy(&single, (const char *)memory + 4 * i, 4);
    return single;
  }
  if (dtype == U8) return ((const uint8_t *)memory)[i];
  memcpy(&half, (const char *)memory + 2 * i, 2);
  if (dtype == BF16) return float_of((uint32_t)half << 16);
  {
    const int exponent = half >> 10 & 31;
    const double fraction = half & 1023;
    const double sign = half >> 15 ? -1 : 1;
    if (exponent == 31) return fraction != 0 ? NAN : sign * INFINITY;
    if (exponent == 0) return sign * ldexp(fraction, -24);
    return sign * ldexp(1024 + fraction, exponent - 25);
  }
}

/* Bits of a value that the dtype has nearly: any nearby element will do for a test's operand. */
static void encode(int dtype, void *memory, int64_t i, double value) {
  const float single = (float)value;
  uint32_t bits;
  uint16_t half;
  memcpy(&bits, &single, 4);
  if (dtype == F32) {
    memcpy((char *)memory + 4 * i, &single, 4);
    return;
  }
  half = (uint16_t)(bits >> 16);
  if (dtype == F16) {
    const int exponent = (int)(bits >> 23 & 255) - 112;
    half = (uint16_t)(bits >> 16 & 0x8000);
    if (isnan(value)) half |= 0x7e00;
    else if (exponent > 0) half |= (uint16_t)(exponent << 10 | (int)(bits >> 13 & 1023));
  }
  memcpy((char *)memory + 2 * i, &half, 2);
}

Tensor *tensor_new(int dtype, int64_t rows, int64_t cols, uint64_t seed, double scale) {
  Tensor *tensor = calloc(1, sizeof *tensor);
  const int64_t count = rows * cols;
  const size_t bytes = (size_t)count * size_of(dtype);
  char *whole = malloc(bytes + 2 * GUARD);
  uint64_t state = seed * 0x9e3779b97f4a7c15u + 0x1234567;
  memset(whole, GUARD_BYTE, bytes + 2 * GUARD);
  tensor->memory = whole + GUARD;
  tensor->dtype = dtype;
  tensor->count = count;
  tensor->shape[0] = rows;
  tensor->shape[1] = cols;
  tensor->values = malloc((size_t)count * sizeof(double) + 1);
  tensor->t.data = tensor->memory;
  tensor->t.device.device_type = kDLCPU;
  tensor->t.ndim = 2;
  tensor->t.dtype.code = (uint8_t)(dtype == BF16 ? kDLBfloat : dtype == U8 ? kDLUInt : kDLFloat);
  tensor->t.dtype.bits = (uint8_t)(8 * size_of(dtype));
  tensor->t.dtype.lanes = 1;
  tensor->t.shape = tensor->shape;
  for (int64_t i = 0; i < count && dtype != U8; i++) {
    const double unit = (double)(next(&state) >> 11) / 4503599627370496.0 - 1;
    encode(dtype, tensor->memory, i, scale == 0 ? NAN : scale * unit);
  }
  tensor_load(tensor);
  return tensor;
}

void tensor_load(Tensor *tensor) {
  for (int64_t i = 0; i < tensor->count; i++) {
    tensor->values[i] = decode(tensor->dtype, tensor->memory, i);
  }
}

void tensor_free(Tensor *tensor) {
  EXPECT(tensor_guarded(tensor), "a write beside a tensor");
  free((char *)tensor->memory - GUARD);
  free(tensor->values);
  free(tensor);
}

int tensor_guarded(const Tensor *tensor) {
  const size_t bytes = (size_t)tensor->count * size_of(tensor->dtype);
  const unsigned char *memory = tensor->memory;
  for (int i = 1; i <= GUARD; i++) {
    if (*(memory - i) != GUARD_BYTE || memory[bytes + (size_t)i - 1] != GUARD_BYTE) return 0;
  }
  return 1;
}

int tensor_untouched(const Tensor *tensor) {
  for (int64_t i = 0; i < tensor->count; i++) {
    if (!isnan(decode(tensor->dtype, tensor->memory, i))) return 0;
  }
  return tensor_guarded(tensor);
}

double at(const Tensor *tensor, int64_t row, int64_t col) {
  return tensor->values[row * tensor->shape[1] + col];
}

int within(double value, double exact, double terms, int dtype) {
  const double rounding = dtype == F32 ? ldexp(1, -24) : dtype == BF16 ? ldexp(1, -8) : ldexp(1, -11);
  const double tiny = dtype == F16 ? ldexp(1, -25) : 0;
  return fabs(value - exact) <= 20 * ldexp(1, -24) * terms + rounding * fabs(exact) + tiny;
}

DLTensor index_tensor(int32_t *values, int ndim, int64_t *shape) {
  DLTensor tensor = {.data = values, .device = {kDLCPU, 0}, .ndim = ndim, .dtype = {kDLInt, 32, 1}, .shape = shape};
  return tensor;
}

typedef struct {
  const char *name;
  void (*of_device)(uint32_t device); /* run on "cpu" and on "reference" */
  void (*once)(void);
} Suite;

static const Suite kSuites[] = {
    {"linear", run_linear, NULL},       {"quantized", run_quantized, NULL}, {"ops", run_ops, NULL},
    {"model", run_model, NULL},         {"refusals", NULL, run_refusals},   {"hostile", NULL, run_hostile},
    {"lifetime", NULL, run_lifetime},   {"gpu", NULL, run_gpu},
    {"grouped", run_grouped, NULL},     {"experts", run_experts, NULL},
};

int main(int argc, char **argv) {
  for (int i = 1; i < argc; i++) {
    const Suite *suite = NULL;
    for (size_t j = 0; j < sizeof kSuites / sizeof *kSuites; j++) {
      if (strcmp(argv[i], kSuites[j].name) == 0) suite = &kSuites[j];
    }
    EXPECT(suite != NULL, "no suite %s", argv[i]);
    if (suite == NULL) continue;
    if (suite->once != NULL) suite->once();
    if (suite->of_device == NULL) continue;
    suite->of_device(LOWRANK_DEVICE_OF_OPERANDS);
    suite->of_device(LOWRANK_DEVICE_REFERENCE);
  }
  printf(failures == 0 ? "all right\n" : "%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
