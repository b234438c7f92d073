/* Batches whose rows have different adapters, against loops in double. */
#include "check.h"

enum { M = 13, N = 37, K = 70, SLOTS = 2, ADAPTERS = 4, MOST_R = 6 };

static const int kRanks[ADAPTERS] = {3, 6, 4, 1};
static const float kScalings[ADAPTERS] = {1.75f, 0.5f, 3, 2};
static const double kDropouts[ADAPTERS] = {0.25, 0, 0.5, 0.125};
/* Of the adapters, the third has no rows. */
static const int32_t kRows[M * SLOTS] = {1, 0, -1, 3, 0, -1, -1, -1, 3, 1, 0, 3, 1, -1, -1, 1, 0, 1, 3, 0, -1, 0, 1, 3, 0, -1};

#define CLOSE(name, value, exact, terms, dtype) \
  EXPECT(within(value, exact, terms, dtype), name " %g, exact %g", (double)(value), (double)(exact))

typedef struct {
  Tensor *a, *b, *bias, *da, *db, *dbias;
  double *old_da, *old_db, *old_dbias; /* what the gradients are added to */
} Adapter;

static double *values_of(const Tensor *tensor) {
  double *copy = malloc((size_t)tensor->count * sizeof(double));
  memcpy(copy, tensor->values, (size_t)tensor->count * sizeof(double));
  return copy;
}

static void check_batch(uint32_t device, int dtype, int add) {
  Tensor *x = tensor_new(dtype, M, K, 1, 1), *w = tensor_new(dtype, N, K, 2, 1), *bias = tensor_new(F32, 1, N, 3, 1);
  Tensor *mask = tensor_new(F32, M, K, 4, 1), *g = tensor_new(F32, M, SLOTS, 5, 1), *y = tensor_new(dtype, M, N, 0, 0);
  Tensor *dy = tensor_new(dtype, M, N, 6, 1), *dx = tensor_new(dtype, M, K, 7, add), *dg = tensor_new(F32, M, SLOTS, 8, add);
  Tensor *db = tensor_new(F32, 1, N, 9, add);
  Adapter adapters[ADAPTERS];
  lowrank_batch_adapter parts[ADAPTERS];
  const lowrank_batch_adapter *pointers[ADAPTERS];
  int32_t rows[M * SLOTS];
  int64_t shape[2] = {M, SLOTS}, h_begin[ADAPTERS], h_count = 0, filled[ADAPTERS];
  memcpy(rows, kRows, sizeof rows);
  DLTensor of_rows = index_tensor(rows, 2, shape);
  lowrank_weight *weight = NULL;
  for (int64_t i = 0; i < M * K; i++) ((float *)mask->memory)[i] = mask->values[i] > -0.5;
  tensor_load(mask);
  for (int e = 0; e < ADAPTERS; e++) {
    const uint64_t seed = 20 + 10 * (uint64_t)e;
    const int r = kRanks[e];
    Adapter *own = &adapters[e];
    own->a = tensor_new(dtype, r, K, seed, 1), own->b = tensor_new(F32, N, r, seed + 1, 1), own->bias = tensor_new(F32, 1, N, seed + 2, 1);
    own->da = tensor_new(dtype, r, K, seed + 3, add), own->db = tensor_new(F32, N, r, seed + 4, add), own->dbias = tensor_new(F32, 1, N, seed + 5, add);
    own->old_da = values_of(own->da), own->old_db = values_of(own->db), own->old_dbias = values_of(own->dbias);
    memset(&parts[e], 0, sizeof parts[e]);
    parts[e].size = sizeof parts[e], parts[e].scaling = kScalings[e], parts[e].dropout = kDropouts[e];
    parts[e].lora_a = &own->a->t, parts[e].lora_b = &own->b->t, parts[e].lora_bias = &own->bias->t;
    pointers[e] = &parts[e];
    h_begin[e] = h_count, filled[e] = 0;
    for (int i = 0; i < M * SLOTS; i++) h_count += kRows[i] == e ? r : 0;
  }
  Tensor *h = tensor_new(F32, 1, h_count, 0, 0);
  OK(lowrank_weight_wrap(&w->t, NULL, NULL, &weight));
  lowrank_grouped_forward_args f = {.size = sizeof f, .device = device, .x = &x->t, .w = weight, .bias = &bias->t};
  f.adapters = pointers, f.adapter_count = ADAPTERS, f.rows = &of_rows, f.row_scale = &g->t, f.dropout_mask = &mask->t;
  f.h = &h->t, f.y = &y->t;

  /* The op that a batch becomes may see only a part of it: what is wrong is refused before. */
  Tensor *short_h = tensor_new(F32, 1, h_count - 1, 0, 0);
  f.h = &short_h->t;
  REFUSED(lowrank_grouped_forward(&f), LOWRANK_ERR_SHAPE, "groupedForward: h must be", "got");
  f.h = &h->t, rows[1] = ADAPTERS;
  REFUSED(lowrank_grouped_forward(&f), LOWRANK_ERR_VALUE, "rows[1] must be from -1 to 3", "got 4");
  rows[1] = 1;
  REFUSED(lowrank_grouped_forward(&f), LOWRANK_ERR_VALUE, "rows must be ascending within an adapter", "row 0 again");
  rows[1] = 0, shape[0] = M - 1;
  REFUSED(lowrank_grouped_forward(&f), LOWRANK_ERR_VALUE, "rows must be 13 indices from -1 to 3", "24 values");
  shape[0] = M, of_rows.dtype.bits = 64;
  REFUSED(lowrank_grouped_forward(&f), LOWRANK_ERR_DTYPE, "rows must be int32", "int64");
  of_rows.dtype.bits = 32, parts[2].flags = LOWRANK_ADD_TO_D_LORA_A;
  REFUSED(lowrank_grouped_forward(&f), LOWRANK_ERR_VALUE, "adapter.flags must be of the bits 0", "got 2");
  parts[2].flags = 0, parts[2].size = 4;
  REFUSED(lowrank_grouped_forward(&f), LOWRANK_ERR_ABI, "size", "4");
  parts[2].size = sizeof parts[2], pointers[2] = NULL;
  REFUSED(lowrank_grouped_forward(&f), LOWRANK_ERR_TYPE, "groupedForward", "NULL");
  pointers[2] = &parts[2], f.adapter_count = -1;
  REFUSED(lowrank_grouped_forward(&f), LOWRANK_ERR_VALUE, "adapterCount must be 0 to", "-1");
  f.adapter_count = ADAPTERS;
  EXPECT(tensor_untouched(h) && tensor_untouched(y) && tensor_untouched(short_h), "a refusal wrote");
  tensor_free(short_h);

  OK(lowrank_grouped_forward(&f));
  tensor_load(h), tensor_load(y);
  double *exact_dx = calloc(M * K, sizeof(double)), *dx_terms = calloc(M * K, sizeof(double));
  double *sums[ADAPTERS][3], *terms_of[ADAPTERS][3];
  for (int e = 0; e < ADAPTERS; e++) {
    const int64_t counts[3] = {kRanks[e] * K, N * kRanks[e], N};
    for (int i = 0; i < 3; i++) sums[e][i] = calloc((size_t)counts[i], sizeof(double)), terms_of[e][i] = calloc((size_t)counts[i], sizeof(double));
  }
  double exact_dg[M * SLOTS] = {0}, dg_terms[M * SLOTS] = {0};
  for (int64_t m = 0; m < M; m++) {
    double exact_y[N], y_terms[N];
    for (int64_t n = 0; n < N; n++) {
      exact_y[n] = at(bias, 0, n), y_terms[n] = fabs(at(bias, 0, n));
      for (int64_t k = 0; k < K; k++) {
        exact_y[n] += at(x, m, k) * at(w, n, k), y_terms[n] += fabs(at(x, m, k) * at(w, n, k));
        exact_dx[m * K + k] += at(dy, m, n) * at(w, n, k), dx_terms[m * K + k] += fabs(at(dy, m, n) * at(w, n, k));
      }
    }
    for (int s = 0; s < SLOTS; s++) {
      const int e = kRows[m * SLOTS + s];
      if (e < 0) continue;
      const Adapter *own = &adapters[e];
      const double gate = at(g, m, s), scaling = kScalings[e], keep = 1 / (1 - kDropouts[e]);
      for (int64_t r = 0; r < kRanks[e]; r++) {
        double exact_h = 0, h_terms = 0, u = 0, u_terms = 0;
        for (int64_t k = 0; k < K; k++) {
          const double product = keep * at(mask, m, k) * at(x, m, k) * at(own->a, r, k);
          exact_h += product, h_terms += fabs(product);
        }
        CLOSE("h", at(h, 0, h_begin[e] + filled[e] * kRanks[e] + r), exact_h, h_terms, F32);
        for (int64_t n = 0; n < N; n++) {
          u += at(dy, m, n) * at(own->b, n, r), u_terms += fabs(at(dy, m, n) * at(own->b, n, r));
          exact_y[n] += gate * scaling * exact_h * at(own->b, n, r);
          y_terms[n] += 2 * fabs(gate * scaling * at(own->b, n, r)) * h_terms;
          sums[e][1][n * kRanks[e] + r] += scaling * gate * at(dy, m, n) * exact_h;
          terms_of[e][1][n * kRanks[e] + r] += 2 * fabs(scaling * gate * at(dy, m, n)) * h_terms;
        }
        exact_dg[m * SLOTS + s] += scaling * u * exact_h, dg_terms[m * SLOTS + s] += 2 * scaling * u_terms * h_terms;
        for (int64_t k = 0; k < K; k++) {
          const double kept = keep * at(mask, m, k);
          const double dh = gate * scaling * u, dh_terms = 2 * fabs(gate * scaling) * u_terms;
          exact_dx[m * K + k] += kept * dh * at(own->a, r, k), dx_terms[m * K + k] += kept * dh_terms * fabs(at(own->a, r, k));
          sums[e][0][r * K + k] += dh * kept * at(x, m, k), terms_of[e][0][r * K + k] += dh_terms * kept * fabs(at(x, m, k));
        }
      }
      for (int64_t n = 0; n < N; n++) {
        exact_y[n] += gate * scaling * at(own->bias, 0, n), y_terms[n] += fabs(gate * scaling * at(own->bias, 0, n));
        exact_dg[m * SLOTS + s] += scaling * at(dy, m, n) * at(own->bias, 0, n);
        dg_terms[m * SLOTS + s] += fabs(scaling * at(dy, m, n) * at(own->bias, 0, n));
        sums[e][2][n] += scaling * gate * at(dy, m, n), terms_of[e][2][n] += fabs(scaling * gate * at(dy, m, n));
      }
      filled[e]++;
    }
    for (int64_t n = 0; n < N; n++) CLOSE("y", at(y, m, n), exact_y[n], y_terms[n], dtype);
  }

  lowrank_grouped_backward_args back = {.size = sizeof back, .device = device, .dy = &dy->t, .x = &x->t, .w = weight, .h = &h->t};
  back.adapters = pointers, back.adapter_count = ADAPTERS, back.rows = &of_rows, back.row_scale = &g->t, back.dropout_mask = &mask->t;
  back.in_features = K, back.dx = &dx->t, back.d_bias = &db->t, back.d_row_scale = &dg->t;
  back.flags = add ? LOWRANK_ADD_TO_DX | LOWRANK_ADD_TO_D_BIAS | LOWRANK_ADD_TO_D_ROW_SCALE : 0;
  for (int e = 0; e < ADAPTERS; e++) {
    parts[e].d_lora_a = &adapters[e].da->t, parts[e].d_lora_b = &adapters[e].db->t, parts[e].d_lora_bias = &adapters[e].dbias->t;
    parts[e].flags = add ? LOWRANK_ADD_TO_D_LORA_A | LOWRANK_ADD_TO_D_LORA_B | LOWRANK_ADD_TO_D_LORA_BIAS : 0;
  }
  double *old_dx = values_of(dx), *old_dg = values_of(dg), *old_db = values_of(db);
  back.in_features = K + 1;
  REFUSED(lowrank_grouped_backward(&back), LOWRANK_ERR_SHAPE, "loraA must be", "70");
  back.in_features = K, back.row_scale = NULL;
  REFUSED(lowrank_grouped_backward(&back), LOWRANK_ERR_VALUE, "dRowScale must be given only with rowScale", "alone");
  back.row_scale = &g->t;
  OK(lowrank_grouped_backward(&back));
  tensor_load(dx), tensor_load(dg), tensor_load(db);
#define SUM(name, tensor, i, exact, terms, old, of)                                                    \
  CLOSE(name, (tensor)->values[i], (exact) + (add ? (old)[i] : 0), (terms) + (add ? fabs((old)[i]) : 0), of)
  for (int64_t i = 0; i < M * K; i++) SUM("dx", dx, i, exact_dx[i], dx_terms[i], old_dx, dtype);
  for (int64_t i = 0; i < M * SLOTS; i++) SUM("dRowScale", dg, i, exact_dg[i], dg_terms[i], old_dg, F32);
  for (int64_t n = 0; n < N; n++) {
    double exact = 0, terms = 0;
    for (int64_t m = 0; m < M; m++) exact += at(dy, m, n), terms += fabs(at(dy, m, n));
    SUM("dBias", db, n, exact, terms, old_db, F32);
  }
  for (int e = 0; e < ADAPTERS; e++) {
    Adapter *own = &adapters[e];
    tensor_load(own->da), tensor_load(own->db), tensor_load(own->dbias);
    for (int64_t i = 0; i < own->da->count; i++) SUM("dLoraA", own->da, i, sums[e][0][i], terms_of[e][0][i], own->old_da, dtype);
    for (int64_t i = 0; i < own->db->count; i++) SUM("dLoraB", own->db, i, sums[e][1][i], terms_of[e][1][i], own->old_db, F32);
    for (int64_t i = 0; i < N; i++) SUM("dLoraBias", own->dbias, i, sums[e][2][i], terms_of[e][2][i], own->old_dbias, F32);
    for (int i = 0; i < 3; i++) free(sums[e][i]), free(terms_of[e][i]);
    tensor_free(own->a), tensor_free(own->b), tensor_free(own->bias), tensor_free(own->da), tensor_free(own->db), tensor_free(own->dbias);
    free(own->old_da), free(own->old_db), free(own->old_dbias);
  }
  OK(lowrank_weight_release(weight));
  free(exact_dx), free(dx_terms), free(old_dx), free(old_dg), free(old_db);
  tensor_free(x), tensor_free(w), tensor_free(bias), tensor_free(mask), tensor_free(g), tensor_free(y);
  tensor_free(dy), tensor_free(dx), tensor_free(dg), tensor_free(db), tensor_free(h);
}

/* One adapter for all rows, none, and no rows at all: the bits of the ops that these are. */
static void check_bounds(uint32_t device) {
  enum { R = 5 };
  Tensor *x = tensor_new(F32, M, K, 1, 1), *w = tensor_new(F32, N, K, 2, 1), *a = tensor_new(F32, R, K, 3, 1), *b = tensor_new(F32, N, R, 4, 1);
  Tensor *h = tensor_new(F32, M, R, 0, 0), *y = tensor_new(F32, M, N, 0, 0), *one_h = tensor_new(F32, 1, M * R, 0, 0), *one = tensor_new(F32, M, N, 0, 0);
  Tensor *no_h = tensor_new(F32, 1, 0, 0, 0), *da = tensor_new(F32, R, K, 5, 1), *db = tensor_new(F32, N, R, 6, 1), *no_rows = tensor_new(F32, 0, N, 0, 0);
  Tensor *no_x = tensor_new(F32, 0, K, 0, 0);
  int32_t rows[M] = {0};
  int64_t count = M, none = 0;
  DLTensor of_rows = index_tensor(rows, 1, &count), of_none = index_tensor(rows, 1, &none);
  lowrank_weight *weight = NULL;
  OK(lowrank_weight_wrap(&w->t, NULL, NULL, &weight));
  lowrank_batch_adapter part = {.size = sizeof part, .scaling = 2, .lora_a = &a->t, .lora_b = &b->t};
  const lowrank_batch_adapter *pointer = &part;
  lowrank_lora_forward_args lora = {.size = sizeof lora, .device = device, .x = &x->t, .w = weight, .lora_a = &a->t, .lora_b = &b->t};
  lora.scaling = 2, lora.h = &h->t, lora.y = &y->t;
  lowrank_grouped_forward_args f = {.size = sizeof f, .device = device, .x = &x->t, .w = weight, .adapters = &pointer, .adapter_count = 1};
  f.rows = &of_rows, f.h = &one_h->t, f.y = &one->t;
  /* lowrank_lora_forward would see an h [M, R] whatever this one is. */
  f.h = &no_h->t;
  REFUSED(lowrank_grouped_forward(&f), LOWRANK_ERR_SHAPE, "groupedForward: h must be [1, 65]", "[1, 0]");
  f.h = &one_h->t;
  EXPECT(tensor_untouched(one_h) && tensor_untouched(one), "a refusal wrote");
  OK(lowrank_lora_forward(&lora));
  OK(lowrank_grouped_forward(&f));
  EXPECT(memcmp(h->memory, one_h->memory, M * R * 4) == 0 && memcmp(y->memory, one->memory, M * N * 4) == 0, "one adapter");
  lowrank_matmul_args base = {.size = sizeof base, .device = device, .x = &x->t, .w = weight, .y = &y->t};
  for (int m = 0; m < M; m++) rows[m] = -1;
  f.h = &no_h->t;
  OK(lowrank_matmul(&base));
  OK(lowrank_grouped_forward(&f));
  EXPECT(memcmp(y->memory, one->memory, M * N * 4) == 0, "no adapter");
  /* The gradients of an adapter without rows are 0, not what was there. */
  for (int empty = 0; empty < 2; empty++) {
    da = (tensor_free(da), tensor_new(F32, R, K, 5, 1)), db = (tensor_free(db), tensor_new(F32, N, R, 6, 1));
    part.d_lora_a = &da->t, part.d_lora_b = &db->t;
    lowrank_grouped_backward_args back = {.size = sizeof back, .device = device, .dy = empty ? &no_rows->t : &y->t, .x = empty ? &no_x->t : &x->t};
    back.h = &no_h->t, back.adapters = &pointer, back.adapter_count = 1, back.rows = empty ? &of_none : &of_rows, back.in_features = K;
    OK(lowrank_grouped_backward(&back));
    tensor_load(da), tensor_load(db);
    for (int64_t i = 0; i < R * K; i++) EXPECT(da->values[i] == 0, "dLoraA %g without rows", da->values[i]);
    for (int64_t i = 0; i < N * R; i++) EXPECT(db->values[i] == 0, "dLoraB %g without rows", db->values[i]);
  }
  OK(lowrank_weight_release(weight));
  tensor_free(x), tensor_free(w), tensor_free(a), tensor_free(b), tensor_free(h), tensor_free(y), tensor_free(one_h);
  tensor_free(one), tensor_free(no_h), tensor_free(da), tensor_free(db), tensor_free(no_rows), tensor_free(no_x);
}

void run_grouped(uint32_t device) {
  check_batch(device, F32, 0);
  check_batch(device, F32, 1);
  check_batch(device, BF16, 0);
  check_bounds(device);
}
