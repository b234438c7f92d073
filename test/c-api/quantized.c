/* Quantised weights: their codes against the table of QLoRA, products against what the parts say. */
#include "check.h"

enum { M = 5, N = 48, K = 192, R = 3, BLOCK = 64, BLOCKS = N * K / BLOCK };

/* NF4, Dettmers et al., 2023 (arXiv:2305.14314), appendix E. */
static const double kNf4[16] = {
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0};

static int code_of(const uint8_t *codes, int64_t i) {
  return i % 2 == 0 ? codes[i / 2] >> 4 : codes[i / 2] & 15;
}

static DLManagedTensorVersioned *part(lowrank_weight *weight, const char *name) {
  DLManagedTensorVersioned *out = NULL;
  OK(lowrank_weight_part(weight, name, &out));
  EXPECT(out != NULL && (out->flags & DLPACK_FLAG_BITMASK_READ_ONLY) != 0, "%s is read-only", name);
  return out;
}

/* Every code is that of the nearest level, and every scale the largest element of its block. */
static void check_codes(lowrank_weight *weight, const Tensor *w) {
  DLManagedTensorVersioned *codes = part(weight, "codes"), *absmax = part(weight, "absmax");
  const uint8_t *code = codes->dl_tensor.data;
  const float *scale = absmax->dl_tensor.data;
  EXPECT(codes->dl_tensor.shape[0] == N * K / 2 && absmax->dl_tensor.shape[0] == BLOCKS, "sizes");
  for (int64_t block = 0; block < BLOCKS; block++) {
    double largest = 0;
    for (int64_t i = block * BLOCK; i < (block + 1) * BLOCK; i++) largest = fmax(largest, fabs(w->values[i]));
    EXPECT((double)scale[block] == largest, "scale %g, largest %g", scale[block], largest);
    for (int64_t i = block * BLOCK; i < (block + 1) * BLOCK; i++) {
      const double unit = w->values[i] / largest;
      double nearest = 9;
      for (int c = 0; c < 16; c++) nearest = fmin(nearest, fabs(kNf4[c] - unit));
      EXPECT(fabs(kNf4[code_of(code, i)] - unit) <= nearest + 1e-7, "code %d of %g", code_of(code, i), unit);
    }
  }
  codes->deleter(codes);
  absmax->deleter(absmax);
}

static void check_products(uint32_t device, lowrank_weight *weight, const double *values) {
  Tensor *x = tensor_new(BF16, M, K, 1, 1), *a = tensor_new(BF16, R, K, 2, 1), *b = tensor_new(BF16, N, R, 3, 1);
  Tensor *h = tensor_new(F32, M, R, 0, 0), *y = tensor_new(BF16, M, N, 0, 0), *z = tensor_new(F32, N, K, 0, 0);
  lowrank_dequantize_args d = {.size = sizeof d, .device = device, .w = weight, .y = &z->t};
  lowrank_lora_forward_args f = {.size = sizeof f, .device = device, .x = &x->t, .w = weight};
  OK(lowrank_dequantize(&d));
  tensor_load(z);
  for (int64_t i = 0; i < N * K; i++) {
    EXPECT(fabs(z->values[i] - values[i]) <= ldexp(1, -23) * fabs(values[i]), "%g, %g", z->values[i], values[i]);
  }
  f.lora_a = &a->t, f.lora_b = &b->t, f.scaling = 2, f.h = &h->t, f.y = &y->t;
  OK(lowrank_lora_forward(&f));
  tensor_load(y);
  for (int64_t m = 0; m < M; m++) {
    for (int64_t n = 0; n < N; n++) {
      double exact = 0, terms = 0;
      for (int64_t k = 0; k < K; k++) {
        exact += at(x, m, k) * values[n * K + k];
        terms += fabs(at(x, m, k) * values[n * K + k]);
        for (int64_t r = 0; r < R; r++) {
          exact += 2 * at(x, m, k) * at(a, r, k) * at(b, n, r);
          terms += 4 * fabs(at(x, m, k) * at(a, r, k) * at(b, n, r));
        }
      }
      EXPECT(within(at(y, m, n), exact, terms + terms * ldexp(1, 14), BF16), "y %g, exact %g", at(y, m, n), exact);
    }
  }
  tensor_free(x), tensor_free(a), tensor_free(b), tensor_free(h), tensor_free(y), tensor_free(z);
}

static void check_nf4(uint32_t device) {
  Tensor *w = tensor_new(F32, N, K, 7, 0.1);
  lowrank_weight *weight = NULL, *again = NULL;
  lowrank_quantize_args q = {.size = sizeof q, .device = device, .w = &w->t, .format = "nf4"};
  lowrank_weight_info info = {.size = sizeof info};
  OK(lowrank_weight_quantize(&q, &weight));
  OK(lowrank_weight_describe(weight, &info));
  EXPECT(info.rows == N && info.cols == K && info.blocksize == BLOCK && strcmp(info.format, "nf4") == 0, "%s", info.format);
  EXPECT(info.bytes == N * K / 2 + 4 * BLOCKS + 64, "%lld bytes", (long long)info.bytes);
  check_codes(weight, w);
  DLManagedTensorVersioned *codes = part(weight, "codes"), *absmax = part(weight, "absmax");
  double *values = malloc(N * K * sizeof(double));
  for (int64_t i = 0; i < N * K; i++) {
    values[i] = (double)(float)kNf4[code_of(codes->dl_tensor.data, i)] * ((float *)absmax->dl_tensor.data)[i / BLOCK];
  }
  check_products(device, weight, values);
  /* The same weight from its parts, which the first handle no longer holds up. */
  lowrank_weight_parts parts = {.size = sizeof parts, .format = "nf4", .rows = N, .cols = K, .blocksize = BLOCK};
  parts.codes = &codes->dl_tensor;
  parts.absmax = &absmax->dl_tensor;
  OK(lowrank_weight_from_parts(&parts, &again));
  OK(lowrank_weight_release(weight));
  check_products(device, again, values);
  DLManagedTensor *legacy = NULL;
  OK(lowrank_to_dlpack_legacy(codes, &legacy));
  EXPECT(legacy->dl_tensor.shape[0] == N * K / 2, "the shape of the earlier form");
  legacy->deleter(legacy);
  absmax->deleter(absmax);
  OK(lowrank_weight_release(again));
  free(values);
  tensor_free(w);
}

/* Scales in 8 bits: scale(b) = table[code(b)] · nested(b / 256) + offset, within 1 % of the plain one. */
static void check_nested(uint32_t device) {
  Tensor *w = tensor_new(F32, N, K, 8, 0.1);
  lowrank_weight *weight = NULL, *plain = NULL;
  lowrank_quantize_args q = {.size = sizeof q, .device = device, .w = &w->t, .format = "nf4"};
  OK(lowrank_weight_quantize(&q, &plain));
  q.flags = LOWRANK_DOUBLE_QUANT;
  OK(lowrank_weight_quantize(&q, &weight));
  DLManagedTensorVersioned *codes = part(weight, "codes"), *scales = part(weight, "absmax_8bit");
  DLManagedTensorVersioned *table = part(weight, "absmax_codebook"), *nested = part(weight, "nested_absmax");
  DLManagedTensorVersioned *offset = part(weight, "absmax_offset"), *absmax = part(plain, "absmax");
  double *values = malloc(N * K * sizeof(double));
  for (int64_t i = 0; i < N * K; i++) {
    const int64_t block = i / BLOCK;
    const double scale = (double)((float *)table->dl_tensor.data)[((uint8_t *)scales->dl_tensor.data)[block]] *
                             ((float *)nested->dl_tensor.data)[block / 256] +
                         ((float *)offset->dl_tensor.data)[0];
    EXPECT(fabs(scale / ((float *)absmax->dl_tensor.data)[block] - 1) < 0.01, "scale %g", scale);
    values[i] = kNf4[code_of(codes->dl_tensor.data, i)] * scale;
  }
  check_products(device, weight, values);
  DLManagedTensorVersioned *all[] = {codes, scales, table, nested, offset, absmax};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) all[i]->deleter(all[i]);
  OK(lowrank_weight_release(weight));
  OK(lowrank_weight_release(plain));
  free(values);
  tensor_free(w);
}

/* LLM.int8: a scale a row, which is the largest of the row in f16, and codes of 127ths of it. */
static void check_rowwise(uint32_t device) {
  Tensor *w = tensor_new(F32, N, K, 9, 0.1);
  lowrank_weight *weight = NULL;
  lowrank_quantize_args q = {.size = sizeof q, .device = device, .flags = LOWRANK_ROWWISE, .w = &w->t, .format = "int8"};
  OK(lowrank_weight_quantize(&q, &weight));
  DLManagedTensorVersioned *codes = part(weight, "codes"), *absmax = part(weight, "absmax");
  const int64_t blocks = absmax->dl_tensor.shape[0] / N;
  double *values = malloc(N * K * sizeof(double));
  for (int64_t n = 0; n < N; n++) {
    const double scale = ((float *)absmax->dl_tensor.data)[n * blocks];
    double largest = 0;
    for (int64_t k = 0; k < K; k++) largest = fmax(largest, fabs(at(w, n, k)));
    EXPECT(fabs(scale / largest - 1) <= ldexp(1, -11), "scale %g, largest %g", scale, largest);
    for (int64_t k = 0; k < K; k++) {
      values[n * K + k] = (((uint8_t *)codes->dl_tensor.data)[n * K + k] - 128) / 127.0 * scale;
      EXPECT(fabs(values[n * K + k] - at(w, n, k)) <= scale * (0.5 / 127 + ldexp(1, -10)), "%g of %g", values[n * K + k], at(w, n, k));
    }
  }
  check_products(device, weight, values);
  codes->deleter(codes), absmax->deleter(absmax);
  OK(lowrank_weight_release(weight));
  free(values);
  tensor_free(w);
}

void run_quantized(uint32_t device) {
  check_nf4(device);
  check_nested(device);
  check_rowwise(device);
}
