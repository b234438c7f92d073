/* The ops beside the linear layers, each against its formula in double. */
#include "check.h"

enum { M = 6, N = 40, K = 72, R = 4 };

static double silu(double g) { return g / (1 + exp(-g)); }
static double silu_slope(double g) { return 1 / (1 + exp(-g)) * (1 + g * (1 - 1 / (1 + exp(-g)))); }

#define CLOSE(name, value, exact, terms, dtype) \
  EXPECT(within(value, exact, terms, dtype), name " %g, exact %g", (double)(value), (double)(exact))

static void check_elementwise(uint32_t device) {
  Tensor *a = tensor_new(F32, M, N, 1, 1), *b = tensor_new(BF16, 1, N, 2, 1), *c = tensor_new(F16, M, 1, 3, 1);
  Tensor *y = tensor_new(F32, M, N, 0, 0), *z = tensor_new(F32, M, N, 0, 0), *sums = tensor_new(F32, 1, N, 0, 0);
  lowrank_multiply_add_args ma = {.size = sizeof ma, .device = device, .a = &a->t, .b = &b->t, .c = &c->t};
  ma.alpha = 2, ma.beta = -0.5f, ma.y = &y->t;
  OK(lowrank_multiply_add(&ma));
  tensor_load(y);
  lowrank_map_args map = {.size = sizeof map, .device = device, .function = "tanh", .x = &a->t, .y = &z->t};
  OK(lowrank_map(&map));
  tensor_load(z);
  for (int64_t m = 0; m < M; m++) {
    for (int64_t n = 0; n < N; n++) {
      const double product = 2 * at(a, m, n) * at(b, 0, n), summand = -0.5 * at(c, m, 0);
      CLOSE("multiplyAdd", at(y, m, n), product + summand, fabs(product) + fabs(summand), F32);
      CLOSE("tanh", at(z, m, n), tanh(at(a, m, n)), 0, F32);
    }
  }
  map.function = "tann";
  REFUSED(lowrank_map(&map), LOWRANK_ERR_VALUE, "function must be one of reciprocal", "\"tann\"");
  map.function = NULL;
  REFUSED(lowrank_map(&map), LOWRANK_ERR_TYPE, "function must be one of", "NULL");
  map.function = "exp", map.y = &a->t;
  REFUSED(lowrank_map(&map), LOWRANK_ERR_ALIAS, "mapTensor", "overlapping");
  lowrank_sum_product_args sp = {.size = sizeof sp, .device = device, .a = &a->t, .b = &c->t, .axis = 0, .y = &sums->t};
  OK(lowrank_sum_product(&sp));
  tensor_load(sums);
  for (int64_t n = 0; n < N; n++) {
    double exact = 0, terms = 0;
    for (int64_t m = 0; m < M; m++) exact += at(a, m, n) * at(c, m, 0), terms += fabs(at(a, m, n));
    CLOSE("sumProduct", at(sums, 0, n), exact, terms, F32);
  }
  sp.axis = 2;
  REFUSED(lowrank_sum_product(&sp), LOWRANK_ERR_VALUE, "axis must be", "2");
  lowrank_cast_args cast = {.size = sizeof cast, .device = device, .x = &a->t, .y = &z->t};
  Tensor *half = tensor_new(BF16, M, N, 0, 0);
  cast.y = &half->t;
  OK(lowrank_cast(&cast));
  tensor_load(half);
  for (int64_t i = 0; i < M * N; i++) CLOSE("cast", half->values[i], a->values[i], 0, BF16);
  tensor_free(a), tensor_free(b), tensor_free(c), tensor_free(y), tensor_free(z), tensor_free(sums), tensor_free(half);
}

static void check_gates(uint32_t device) {
  Tensor *gate = tensor_new(F32, M, N, 4, 3), *up = tensor_new(F32, M, N, 5, 1), *dy = tensor_new(F32, M, N, 6, 1);
  Tensor *y = tensor_new(F32, M, N, 0, 0), *dgate = tensor_new(F32, M, N, 0, 0), *dup = tensor_new(F32, M, N, 0, 0);
  lowrank_gated_activation_args f = {.size = sizeof f, .device = device, .function = "silu", .gate = &gate->t};
  f.up = &up->t, f.y = &y->t;
  OK(lowrank_gated_activation(&f));
  lowrank_gated_activation_backward_args g = {.size = sizeof g, .device = device, .function = "silu", .dy = &dy->t};
  g.gate = &gate->t, g.up = &up->t, g.d_gate = &dgate->t, g.d_up = &dup->t;
  OK(lowrank_gated_activation_backward(&g));
  tensor_load(y), tensor_load(dgate), tensor_load(dup);
  for (int64_t i = 0; i < M * N; i++) {
    const double s = gate->values[i], u = up->values[i], d = dy->values[i];
    CLOSE("y", y->values[i], silu(s) * u, 0, F32);
    CLOSE("dGate", dgate->values[i], d * u * silu_slope(s), fabs(d * u), F32);
    CLOSE("dUp", dup->values[i], d * silu(s), 0, F32);
  }
  tensor_free(gate), tensor_free(up), tensor_free(dy), tensor_free(y), tensor_free(dgate), tensor_free(dup);
}

/* Masks keep the fraction that they should, normal numbers have their moments, and a seed its numbers. */
static void check_random(uint32_t device) {
  enum { COUNT = 40000 };
  Tensor *y = tensor_new(F32, 1, COUNT, 0, 0), *z = tensor_new(F32, 1, COUNT, 0, 0);
  lowrank_random_args args = {.size = sizeof args, .device = device, .kind = LOWRANK_NORMAL, .seed = 5, .a = 1, .b = 2, .y = &y->t};
  double sum = 0, squares = 0, kept = 0;
  OK(lowrank_random(&args));
  args.y = &z->t;
  OK(lowrank_random(&args));
  tensor_load(y);
  EXPECT(memcmp(y->memory, z->memory, COUNT * 4) == 0, "the same seed");
  for (int64_t i = 0; i < COUNT; i++) sum += y->values[i], squares += (y->values[i] - 1) * (y->values[i] - 1);
  EXPECT(fabs(sum / COUNT - 1) < 0.05 && fabs(sqrt(squares / COUNT) - 2) < 0.05, "mean %g", sum / COUNT);
  args.kind = LOWRANK_KEEP, args.a = 0.25;
  OK(lowrank_random(&args));
  tensor_load(z);
  for (int64_t i = 0; i < COUNT; i++) kept += z->values[i];
  EXPECT(fabs(kept / COUNT - 0.75) < 0.02, "kept %g", kept / COUNT);
  args.kind = 3;
  REFUSED(lowrank_random(&args), LOWRANK_ERR_VALUE, "kind must be", "3");
  tensor_free(y), tensor_free(z);
}

/* The halves of an adapter, several layers of one x, and norms: against the whole calls and loops. */
static void check_parts(uint32_t device) {
  Tensor *x = tensor_new(F32, M, K, 11, 1), *w = tensor_new(F32, N, K, 12, 1), *v = tensor_new(F32, N, K, 13, 1);
  Tensor *a = tensor_new(F32, R, K, 14, 1), *b = tensor_new(F32, N, R, 15, 1);
  Tensor *h = tensor_new(F32, M, R, 0, 0), *y = tensor_new(F32, M, N, 0, 0), *u = tensor_new(F32, M, N, 0, 0);
  Tensor *s = tensor_new(F32, M, N, 0, 0), *p = tensor_new(F32, M, N, 0, 0), *norms = tensor_new(F32, 1, N, 0, 0);
  Tensor *dw = tensor_new(F32, N, K, 0, 0), *squares = tensor_new(F32, 1, N, 0, 0);
  lowrank_weight *weight = NULL, *other = NULL;
  OK(lowrank_weight_wrap(&w->t, NULL, NULL, &weight));
  OK(lowrank_weight_wrap(&v->t, NULL, NULL, &other));
  lowrank_projection gate = {.size = sizeof gate, .w = weight, .lora_a = &a->t, .lora_b = &b->t, .scaling = 2};
  lowrank_projection up = {.size = sizeof up, .w = other, .y = &u->t};
  const lowrank_projection *both[] = {&gate, &up};
  gate.h = &h->t, gate.y = &y->t;
  lowrank_lora_forward_many_args many = {.size = sizeof many, .device = device, .x = &x->t, .projections = both, .count = 2};
  OK(lowrank_lora_forward_many(&many));
  tensor_load(h), tensor_load(y), tensor_load(u);
  lowrank_lora_forward_swiglu_args swiglu = {.size = sizeof swiglu, .device = device, .x = &x->t, .gate = &gate, .up = &up, .y = &s->t};
  gate.y = up.y = NULL;
  OK(lowrank_lora_forward_swiglu(&swiglu));
  tensor_load(s);
  for (int64_t m = 0; m < M; m++) {
    for (int64_t n = 0; n < N; n++) {
      double exact = 0, terms = 0, plain = 0, plain_terms = 0;
      for (int64_t k = 0; k < K; k++) {
        exact += at(x, m, k) * at(w, n, k), terms += fabs(at(x, m, k) * at(w, n, k));
        plain += at(x, m, k) * at(v, n, k), plain_terms += fabs(at(x, m, k) * at(v, n, k));
        for (int64_t r = 0; r < R; r++) {
          exact += 2 * at(x, m, k) * at(a, r, k) * at(b, n, r);
          terms += 4 * fabs(at(x, m, k) * at(a, r, k) * at(b, n, r));
        }
      }
      CLOSE("gate", at(y, m, n), exact, terms, F32);
      CLOSE("up", at(u, m, n), plain, plain_terms, F32);
      CLOSE("swiglu", at(s, m, n), silu(at(y, m, n)) * at(u, m, n), 0, F32);
    }
  }
  lowrank_lora_shrink_args shrink = {.size = sizeof shrink, .device = device, .x = &x->t, .lora_a = &a->t, .scaling = 1, .h = &h->t};
  OK(lowrank_lora_shrink(&shrink));
  lowrank_lora_expand_args expand = {.size = sizeof expand, .device = device, .x = &x->t, .w = weight, .h = &h->t};
  expand.lora_b = &b->t, expand.scaling = 2, expand.y = &p->t;
  OK(lowrank_lora_expand(&expand));
  tensor_load(p);
  for (int64_t i = 0; i < M * N; i++) CLOSE("expand", p->values[i], y->values[i], K * fabs(y->values[i]) + K, F32);
  lowrank_weight_norms_args wn = {.size = sizeof wn, .device = device, .w = weight, .norms = &squares->t};
  OK(lowrank_weight_norms(&wn));
  lowrank_factored_norm_args fn = {.size = sizeof fn, .device = device, .w = weight, .lora_a = &a->t, .lora_b = &b->t};
  fn.squares = &squares->t, fn.scaling = 2, fn.norms = &norms->t;
  OK(lowrank_factored_norm(&fn));
  lowrank_weight_grad_args wg = {.size = sizeof wg, .device = device, .dy = &y->t, .x = &x->t, .dw = &dw->t};
  OK(lowrank_weight_grad(&wg));
  tensor_load(norms), tensor_load(dw), tensor_load(squares);
  for (int64_t n = 0; n < N; n++) {
    double square = 0, adapted = 0;
    for (int64_t k = 0; k < K; k++) {
      double value = at(w, n, k), exact = 0, terms = 0;
      square += value * value;
      for (int64_t r = 0; r < R; r++) value += 2 * at(b, n, r) * at(a, r, k);
      adapted += value * value;
      for (int64_t m = 0; m < M; m++) exact += at(y, m, n) * at(x, m, k), terms += fabs(at(y, m, n) * at(x, m, k));
      CLOSE("dw", at(dw, n, k), exact, terms, F32);
    }
    CLOSE("square", at(squares, 0, n), square, 0, F32);
    CLOSE("norm", at(norms, 0, n), sqrt(adapted), K * 4, F32);
  }
  gate.y = &y->t;
  REFUSED(lowrank_lora_forward_swiglu(&swiglu), LOWRANK_ERR_VALUE, "up.y", "only one");
  many.count = 9;
  REFUSED(lowrank_lora_forward_many(&many), LOWRANK_ERR_VALUE, "count must be 1 to 8", "9");
  many.count = 2, both[1] = NULL;
  REFUSED(lowrank_lora_forward_many(&many), LOWRANK_ERR_TYPE, "struct must be given", "NULL");
  OK(lowrank_weight_release(weight));
  OK(lowrank_weight_release(other));
  Tensor *all[] = {x, w, v, a, b, h, y, u, s, p, norms, dw, squares};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) tensor_free(all[i]);
}

/* dh and the gradients of the halves against those of the whole backward pass. */
static void check_halves_backward(uint32_t device) {
  Tensor *x = tensor_new(F32, M, K, 21, 1), *w = tensor_new(F32, N, K, 22, 1), *dy = tensor_new(F32, M, N, 23, 1);
  Tensor *a = tensor_new(F32, R, K, 24, 1), *b = tensor_new(F32, N, R, 25, 1), *h = tensor_new(F32, M, R, 26, 1);
  Tensor *dh = tensor_new(F32, M, R, 0, 0), *db = tensor_new(F32, N, R, 0, 0), *dbias = tensor_new(F32, 1, N, 0, 0);
  Tensor *dx = tensor_new(F32, M, K, 0, 0), *da = tensor_new(F32, R, K, 0, 0);
  lowrank_weight *weight = NULL;
  OK(lowrank_weight_wrap(&w->t, NULL, NULL, &weight));
  lowrank_lora_expand_backward_args e = {.size = sizeof e, .device = device, .dy = &dy->t, .h = &h->t, .lora_b = &b->t};
  e.scaling = 2, e.dh = &dh->t, e.d_lora_b = &db->t, e.d_bias = &dbias->t;
  OK(lowrank_lora_expand_backward(&e));
  tensor_load(dh), tensor_load(db), tensor_load(dbias);
  lowrank_lora_shrink_backward_args s = {.size = sizeof s, .device = device, .dy = &dy->t, .w = weight, .dh = &dh->t};
  s.x = &x->t, s.lora_a = &a->t, s.scaling = 1, s.dx = &dx->t, s.d_lora_a = &da->t;
  OK(lowrank_lora_shrink_backward(&s));
  tensor_load(dx), tensor_load(da);
  for (int64_t r = 0; r < R; r++) {
    for (int64_t m = 0; m < M; m++) {
      double exact = 0, terms = 0;
      for (int64_t n = 0; n < N; n++) exact += 2 * at(dy, m, n) * at(b, n, r), terms += 2 * fabs(at(dy, m, n) * at(b, n, r));
      CLOSE("dh", at(dh, m, r), exact, terms, F32);
    }
    for (int64_t k = 0; k < K; k++) {
      double exact = 0, terms = 0;
      for (int64_t m = 0; m < M; m++) exact += at(dh, m, r) * at(x, m, k), terms += fabs(at(dh, m, r) * at(x, m, k));
      CLOSE("dLoraA", at(da, r, k), exact, terms, F32);
    }
  }
  for (int64_t n = 0; n < N; n++) {
    double bias = 0, bias_terms = 0;
    for (int64_t m = 0; m < M; m++) bias += at(dy, m, n), bias_terms += fabs(at(dy, m, n));
    CLOSE("dBias", at(dbias, 0, n), bias, bias_terms, F32);
    for (int64_t r = 0; r < R; r++) {
      double exact = 0, terms = 0;
      for (int64_t m = 0; m < M; m++) exact += 2 * at(dy, m, n) * at(h, m, r), terms += 2 * fabs(at(dy, m, n) * at(h, m, r));
      CLOSE("dLoraB", at(db, n, r), exact, terms, F32);
    }
  }
  for (int64_t m = 0; m < M; m++) {
    for (int64_t k = 0; k < K; k++) {
      double exact = 0, terms = 0;
      for (int64_t n = 0; n < N; n++) exact += at(dy, m, n) * at(w, n, k), terms += fabs(at(dy, m, n) * at(w, n, k));
      for (int64_t r = 0; r < R; r++) exact += at(dh, m, r) * at(a, r, k), terms += fabs(at(dh, m, r) * at(a, r, k));
      CLOSE("dx", at(dx, m, k), exact, terms, F32);
    }
  }
  OK(lowrank_weight_release(weight));
  Tensor *all[] = {x, w, dy, a, b, h, dh, db, dbias, dx, da};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) tensor_free(all[i]);
}

static DLTensor with_shape(const Tensor *tensor, int64_t *shape, int64_t d0, int64_t d1, int64_t d2) {
  DLTensor view = tensor->t;
  shape[0] = d0, shape[1] = d1, shape[2] = d2;
  view.shape = shape;
  view.ndim = 3;
  return view;
}

static void check_blocks(uint32_t device) {
  enum { G = 3, P = 5, Q = 8 };
  Tensor *x = tensor_new(F32, M * G, Q, 31, 1), *w = tensor_new(F32, G * P, Q, 32, 1), *dy = tensor_new(F32, M * G, P, 33, 1);
  Tensor *y = tensor_new(F32, M * G, P, 0, 0), *dx = tensor_new(F32, M * G, Q, 0, 0), *dw = tensor_new(F32, G * P, Q, 0, 0);
  int64_t shapes[6][3];
  DLTensor vx = with_shape(x, shapes[0], M, G, Q), vw = with_shape(w, shapes[1], G, P, Q), vdy = with_shape(dy, shapes[2], M, G, P);
  DLTensor vy = with_shape(y, shapes[3], M, G, P), vdx = with_shape(dx, shapes[4], M, G, Q), vdw = with_shape(dw, shapes[5], G, P, Q);
  lowrank_block_matmul_args f = {.size = sizeof f, .device = device, .x = &vx, .w = &vw, .y = &vy};
  OK(lowrank_block_matmul(&f));
  f.flags = LOWRANK_BLOCK_INPUT_GRAD, f.x = &vdy, f.y = &vdx;
  OK(lowrank_block_matmul(&f));
  lowrank_block_weight_grad_args g = {.size = sizeof g, .device = device, .dy = &vdy, .x = &vx, .dw = &vdw};
  OK(lowrank_block_weight_grad(&g));
  tensor_load(y), tensor_load(dx), tensor_load(dw);
  for (int64_t gg = 0; gg < G; gg++) {
    for (int64_t p = 0; p < P; p++) {
      for (int64_t q = 0; q < Q; q++) {
        double exact = 0, terms = 0;
        for (int64_t m = 0; m < M; m++) {
          exact += at(dy, m * G + gg, p) * at(x, m * G + gg, q), terms += fabs(at(dy, m * G + gg, p) * at(x, m * G + gg, q));
        }
        CLOSE("dw", at(dw, gg * P + p, q), exact, terms, F32);
      }
      for (int64_t m = 0; m < M; m++) {
        double exact = 0, terms = 0;
        for (int64_t q = 0; q < Q; q++) {
          exact += at(x, m * G + gg, q) * at(w, gg * P + p, q), terms += fabs(at(x, m * G + gg, q) * at(w, gg * P + p, q));
        }
        CLOSE("y", at(y, m * G + gg, p), exact, terms, F32);
      }
    }
    for (int64_t m = 0; m < M; m++) {
      for (int64_t q = 0; q < Q; q++) {
        double exact = 0, terms = 0;
        for (int64_t p = 0; p < P; p++) {
          exact += at(dy, m * G + gg, p) * at(w, gg * P + p, q), terms += fabs(at(dy, m * G + gg, p) * at(w, gg * P + p, q));
        }
        CLOSE("dx", at(dx, m * G + gg, q), exact, terms, F32);
      }
    }
  }
  vy.ndim = 2, f.flags = 0, f.x = &vx, f.y = &vy;
  REFUSED(lowrank_block_matmul(&f), LOWRANK_ERR_SHAPE, "y must be of 3 dimensions", "2");
  tensor_free(x), tensor_free(w), tensor_free(dy), tensor_free(y), tensor_free(dx), tensor_free(dw);
}

/* Sums over lists of features, and a gather with a hole. */
static void check_features(uint32_t device) {
  Tensor *x = tensor_new(F32, M, 4, 41, 1), *c = tensor_new(F32, M, 3, 42, 1), *y = tensor_new(F32, M, 3, 0, 0);
  int32_t begin[4] = {0, 2, 2, 3}, index[3] = {1, 3, 0}, gather[3] = {2, -1, 0};
  int64_t begins = 4, entries = 3;
  DLTensor of_begin = {.data = begin, .device = {kDLCPU, 0}, .ndim = 1, .dtype = {kDLInt, 32, 1}, .shape = &begins};
  DLTensor of_index = {.data = index, .device = {kDLCPU, 0}, .ndim = 1, .dtype = {kDLInt, 32, 1}, .shape = &entries};
  lowrank_map_features_args f = {.size = sizeof f, .device = device, .x = &x->t, .begin = &of_begin, .index = &of_index};
  f.c = &c->t, f.alpha = 2, f.beta = 3, f.y = &y->t;
  OK(lowrank_map_features(&f));
  tensor_load(y);
  for (int64_t m = 0; m < M; m++) {
    CLOSE("list", at(y, m, 0), 2 * (at(x, m, 1) + at(x, m, 3)) + 3 * at(c, m, 0), 12, F32);
    CLOSE("empty list", at(y, m, 1), 3 * at(c, m, 1), 12, F32);
    CLOSE("list of one", at(y, m, 2), 2 * at(x, m, 0) + 3 * at(c, m, 2), 12, F32);
  }
  begin[2] = 1;
  REFUSED(lowrank_map_features(&f), LOWRANK_ERR_VALUE, "begin must be in ascending order", "1 after 2");
  begin[2] = 2, begin[3] = 4;
  REFUSED(lowrank_map_features(&f), LOWRANK_ERR_VALUE, "begin must be from 0 to 3", "0 to 4");
  begin[3] = 3, index[1] = 4;
  REFUSED(lowrank_map_features(&f), LOWRANK_ERR_VALUE, "index[1] must be", "4");
  index[1] = -1;
  REFUSED(lowrank_map_features(&f), LOWRANK_ERR_VALUE, "index[1] must be", "-1");
  f.begin = NULL, f.c = NULL, of_index.data = gather;
  OK(lowrank_map_features(&f));
  tensor_load(y);
  for (int64_t m = 0; m < M; m++) {
    CLOSE("gather", at(y, m, 0), 2 * at(x, m, 2), 0, F32);
    EXPECT(at(y, m, 1) == 0, "a hole is 0, got %g", at(y, m, 1));
  }
  tensor_free(x), tensor_free(c), tensor_free(y);
}

void run_ops(uint32_t device) {
  check_features(device);
  check_elementwise(device);
  check_gates(device);
  check_random(device);
  check_parts(device);
  check_halves_backward(device);
  check_blocks(device);
}
