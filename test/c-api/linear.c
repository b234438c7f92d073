/* Products and adapters against loops in double. */
#include "check.h"

enum { M = 7, N = 65, K = 130, R = 5 };

static const float kScaling = 1.75f;

/* Σ x[m, k] · w[n, k], and Σ |x · w| added to *terms. */
static double dot_rows(const Tensor *x, int64_t m, const Tensor *w, int64_t n, double *terms) {
  double sum = 0;
  for (int64_t k = 0; k < x->shape[1]; k++) {
    sum += at(x, m, k) * at(w, n, k);
    *terms += fabs(at(x, m, k) * at(w, n, k));
  }
  return sum;
}

static void check_matmul(uint32_t device, int dtype) {
  Tensor *x = tensor_new(dtype, M, K, 1, 1), *w = tensor_new(dtype, N, K, 2, 1);
  Tensor *bias = tensor_new(F32, 1, N, 3, 1), *y = tensor_new(dtype, M, N, 0, 0);
  Tensor *dy = tensor_new(dtype, M, N, 4, 1), *dx = tensor_new(dtype, M, K, 0, 0);
  lowrank_weight *weight = NULL;
  lowrank_matmul_args args = {.size = sizeof args, .device = device};
  lowrank_matmul_input_grad_args back = {.size = sizeof back, .device = device};
  OK(lowrank_weight_wrap(&w->t, NULL, NULL, &weight));
  args.x = &x->t;
  args.w = weight;
  args.bias = &bias->t;
  args.y = &y->t;
  OK(lowrank_matmul(&args));
  tensor_load(y);
  for (int64_t m = 0; m < M; m++) {
    for (int64_t n = 0; n < N; n++) {
      double terms = fabs(at(bias, 0, n));
      const double exact = dot_rows(x, m, w, n, &terms) + at(bias, 0, n);
      EXPECT(within(at(y, m, n), exact, terms, dtype), "y %g, exact %g", at(y, m, n), exact);
    }
  }
  back.dy = &dy->t;
  back.w = weight;
  back.dx = &dx->t;
  OK(lowrank_matmul_input_grad(&back));
  tensor_load(dx);
  for (int64_t m = 0; m < M; m++) {
    for (int64_t k = 0; k < K; k++) {
      double exact = 0, terms = 0;
      for (int64_t n = 0; n < N; n++) {
        exact += at(dy, m, n) * at(w, n, k);
        terms += fabs(at(dy, m, n) * at(w, n, k));
      }
      EXPECT(within(at(dx, m, k), exact, terms, dtype), "dx %g, exact %g", at(dx, m, k), exact);
    }
  }
  OK(lowrank_weight_release(weight));
  tensor_free(x), tensor_free(w), tensor_free(bias), tensor_free(y), tensor_free(dy), tensor_free(dx);
}

/* An adapter: forward with a mask, and each gradient, added to what was there where `add`. */
static void check_lora(uint32_t device, int dtype, int add) {
  Tensor *x = tensor_new(dtype, M, K, 11, 1), *w = tensor_new(dtype, N, K, 12, 1);
  Tensor *a = tensor_new(dtype, R, K, 13, 1), *b = tensor_new(F32, N, R, 14, 1);
  Tensor *mask = tensor_new(F32, M, K, 15, 1), *lora_bias = tensor_new(F32, 1, N, 16, 1);
  Tensor *h = tensor_new(F32, M, R, 0, 0), *y = tensor_new(dtype, M, N, 0, 0);
  Tensor *dy = tensor_new(dtype, M, N, 17, 1), *dx = tensor_new(dtype, M, K, 18, add);
  Tensor *da = tensor_new(F32, R, K, 19, add), *db = tensor_new(F32, N, R, 20, add);
  Tensor *dbias = tensor_new(F32, 1, N, 21, add);
  const double p = 0.25, keep = 1 / (1 - p);
  lowrank_weight *weight = NULL;
  lowrank_lora_forward_args f = {.size = sizeof f, .device = device};
  lowrank_lora_backward_args g = {.size = sizeof g, .device = device};
  for (int64_t i = 0; i < M * K; i++) ((float *)mask->memory)[i] = mask->values[i] > -0.5;
  tensor_load(mask);
  OK(lowrank_weight_wrap(&w->t, NULL, NULL, &weight));
  f.x = &x->t, f.w = weight, f.lora_a = &a->t, f.lora_b = &b->t, f.lora_bias = &lora_bias->t;
  f.dropout_mask = &mask->t, f.dropout = p, f.scaling = kScaling, f.h = &h->t, f.y = &y->t;
  OK(lowrank_lora_forward(&f));
  tensor_load(h), tensor_load(y);
  for (int64_t m = 0; m < M; m++) {
    double term_h[R], exact_h[R];
    for (int64_t r = 0; r < R; r++) {
      exact_h[r] = term_h[r] = 0;
      for (int64_t k = 0; k < K; k++) {
        const double product = keep * at(mask, m, k) * at(x, m, k) * at(a, r, k);
        exact_h[r] += product;
        term_h[r] += fabs(product);
      }
      EXPECT(within(at(h, m, r), exact_h[r], term_h[r], F32), "h %g, exact %g", at(h, m, r), exact_h[r]);
    }
    for (int64_t n = 0; n < N; n++) {
      double terms = fabs(kScaling * at(lora_bias, 0, n));
      double exact = dot_rows(x, m, w, n, &terms) + kScaling * at(lora_bias, 0, n);
      for (int64_t r = 0; r < R; r++) {
        exact += kScaling * exact_h[r] * at(b, n, r);
        terms += 2 * kScaling * term_h[r] * fabs(at(b, n, r));
      }
      EXPECT(within(at(y, m, n), exact, terms, dtype), "y %g, exact %g", at(y, m, n), exact);
    }
  }
  g.dy = &dy->t, g.x = &x->t, g.w = weight, g.lora_a = &a->t, g.lora_b = &b->t, g.h = &h->t;
  g.dropout_mask = &mask->t, g.dropout = p, g.scaling = kScaling;
  g.dx = &dx->t, g.d_lora_a = &da->t, g.d_lora_b = &db->t, g.d_bias = &dbias->t;
  if (add) {
    g.flags = LOWRANK_ADD_TO_DX | LOWRANK_ADD_TO_D_LORA_A | LOWRANK_ADD_TO_D_LORA_B | LOWRANK_ADD_TO_D_BIAS;
  }
  double *dh = calloc(M * R, sizeof(double)), *dh_terms = calloc(M * R, sizeof(double));
  for (int64_t m = 0; m < M; m++) {
    for (int64_t r = 0; r < R; r++) {
      for (int64_t n = 0; n < N; n++) {
        dh[m * R + r] += kScaling * at(dy, m, n) * at(b, n, r);
        dh_terms[m * R + r] += fabs(kScaling * at(dy, m, n) * at(b, n, r));
      }
    }
  }
  double *old_dx = malloc(M * K * sizeof(double)), *old_da = malloc(R * K * sizeof(double));
  double *old_db = malloc(N * R * sizeof(double)), *old_bias = malloc(N * sizeof(double));
  memcpy(old_dx, dx->values, M * K * sizeof(double)), memcpy(old_da, da->values, R * K * sizeof(double));
  memcpy(old_db, db->values, N * R * sizeof(double)), memcpy(old_bias, dbias->values, N * sizeof(double));
  OK(lowrank_lora_backward(&g));
  tensor_load(dx), tensor_load(da), tensor_load(db), tensor_load(dbias);
  for (int64_t k = 0; k < K; k++) {
    for (int64_t m = 0; m < M; m++) {
      double exact = add ? old_dx[m * K + k] : 0, terms = fabs(exact);
      for (int64_t n = 0; n < N; n++) {
        exact += at(dy, m, n) * at(w, n, k);
        terms += fabs(at(dy, m, n) * at(w, n, k));
      }
      for (int64_t r = 0; r < R; r++) {
        exact += keep * at(mask, m, k) * dh[m * R + r] * at(a, r, k);
        terms += 2 * keep * dh_terms[m * R + r] * fabs(at(a, r, k));
      }
      /* With ADD the gradient is rounded to its dtype before and after the sum. */
      if (add && dtype != F32) terms += fabs(exact - old_dx[m * K + k]) * ldexp(1, dtype == BF16 ? 12 : 9);
      EXPECT(within(at(dx, m, k), exact, terms, dtype), "dx %g, exact %g", at(dx, m, k), exact);
    }
    for (int64_t r = 0; r < R; r++) {
      double exact = add ? old_da[r * K + k] : 0, terms = fabs(exact);
      for (int64_t m = 0; m < M; m++) {
        exact += dh[m * R + r] * keep * at(mask, m, k) * at(x, m, k);
        terms += 2 * dh_terms[m * R + r] * keep * at(mask, m, k) * fabs(at(x, m, k));
      }
      EXPECT(within(at(da, r, k), exact, terms, F32), "dLoraA %g, exact %g", at(da, r, k), exact);
    }
  }
  for (int64_t n = 0; n < N; n++) {
    double sum = add ? old_bias[n] : 0, sum_terms = fabs(sum);
    for (int64_t m = 0; m < M; m++) sum += at(dy, m, n), sum_terms += fabs(at(dy, m, n));
    EXPECT(within(at(dbias, 0, n), sum, sum_terms, F32), "dBias %g, exact %g", at(dbias, 0, n), sum);
    for (int64_t r = 0; r < R; r++) {
      double exact = add ? old_db[n * R + r] : 0, terms = fabs(exact);
      for (int64_t m = 0; m < M; m++) {
        exact += kScaling * at(dy, m, n) * at(h, m, r);
        terms += fabs(kScaling * at(dy, m, n) * at(h, m, r));
      }
      EXPECT(within(at(db, n, r), exact, terms, F32), "dLoraB %g, exact %g", at(db, n, r), exact);
    }
  }
  free(dh), free(dh_terms), free(old_dx), free(old_da), free(old_db), free(old_bias);
  OK(lowrank_weight_release(weight));
  tensor_free(x), tensor_free(w), tensor_free(a), tensor_free(b), tensor_free(mask), tensor_free(lora_bias);
  tensor_free(h), tensor_free(y), tensor_free(dy), tensor_free(dx), tensor_free(da), tensor_free(db), tensor_free(dbias);
}

/* Memory that begins anywhere gives the bits of memory that begins at a page: `byte_offset`, leading
 * dimensions and strides of contiguous tensors are honoured. */
static void check_places(uint32_t device) {
  Tensor *x = tensor_new(F32, M, K, 31, 1), *w = tensor_new(F32, N, K, 32, 1);
  Tensor *y = tensor_new(F32, M, N, 0, 0), *z = tensor_new(F32, M, N, 0, 0);
  lowrank_weight *weight = NULL;
  OK(lowrank_weight_wrap(&w->t, NULL, NULL, &weight));
  lowrank_matmul_args args = {.size = sizeof args, .device = device, .x = &x->t, .w = weight, .y = &y->t};
  OK(lowrank_matmul(&args));
  float *moved = malloc((M * K + 16) * sizeof(float));
  for (int shift = 1; shift < 16; shift += 5) {
    memcpy(moved + shift, x->memory, M * K * sizeof(float));
    int64_t shape[3] = {1, M, K}, strides[3] = {-77, K, 1};
    DLTensor odd = x->t;
    odd.data = moved;
    odd.byte_offset = (uint64_t)shift * sizeof(float);
    odd.ndim = 3;
    odd.shape = shape;
    odd.strides = strides; /* a dimension of 1 has any stride */
    args.x = &odd;
    args.y = &z->t;
    OK(lowrank_matmul(&args));
    EXPECT(memcmp(y->memory, z->memory, M * N * sizeof(float)) == 0, "shift %d", shift);
  }
  free(moved);
  OK(lowrank_weight_release(weight));
  tensor_free(x), tensor_free(w), tensor_free(y), tensor_free(z);
}

void run_linear(uint32_t device) {
  for (int dtype = F32; dtype <= F16; dtype++) {
    check_matmul(device, dtype);
    check_lora(device, dtype, 0);
    check_lora(device, dtype, 1);
  }
  check_places(device);
}
