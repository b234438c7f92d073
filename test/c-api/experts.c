/* A layer of experts, from logits to the sum of each row, against loops in double. */
#include "check.h"

enum { M = 11, E = 5, TOP = 2, S = M * TOP, N = 19, K = 34, R = 3 };

#define CLOSE(name, value, exact, terms, dtype) \
  EXPECT(within(value, exact, terms, dtype), name " %g, exact %g", (double)(value), (double)(exact))

typedef struct {
  int32_t chosen[S], order[S], inverse[S], offsets[E + 1];
  int64_t pairs[2], slots, ends;
  DLTensor of_chosen, of_order, of_inverse, of_offsets;
  lowrank_route view;
} Route;

static void start(Route *route) {
  memset(route, 0, sizeof *route);
  route->pairs[0] = M, route->pairs[1] = TOP, route->slots = S, route->ends = E + 1;
  route->of_chosen = index_tensor(route->chosen, 2, route->pairs);
  route->of_order = index_tensor(route->order, 1, &route->slots);
  route->of_inverse = index_tensor(route->inverse, 1, &route->slots);
  route->of_offsets = index_tensor(route->offsets, 1, &route->ends);
  route->view.size = sizeof route->view, route->view.k = TOP;
  route->view.order = &route->of_order, route->view.inverse = &route->of_inverse, route->view.offsets = &route->of_offsets;
}

static int expert_of(const Route *route, int64_t slot) {
  for (int e = 0; e < E; e++) {
    if (slot >= route->offsets[e] && slot < route->offsets[e + 1]) return e;
  }
  return -1;
}

/* The choice and its gates, their gradients, and the order of the slots. */
static void check_choice(uint32_t device, uint32_t flags, Route *route, Tensor *gates) {
  Tensor *logits = tensor_new(F32, M, E, 1, 3), *dg = tensor_new(F32, M, TOP, 2, 1), *dl = tensor_new(F32, M, E, 0, 0);
  lowrank_select_experts_args s = {.size = sizeof s, .device = device, .flags = flags, .logits = &logits->t};
  s.experts = &route->of_chosen, s.gates = &gates->t;
  OK(lowrank_select_experts(&s));
  tensor_load(gates);
  lowrank_select_experts_backward_args b = {.size = sizeof b, .device = device, .flags = flags, .d_gates = &dg->t, .logits = &logits->t};
  b.experts = &route->of_chosen, b.gates = &gates->t, b.d_logits = &dl->t;
  OK(lowrank_select_experts_backward(&b));
  tensor_load(dl);
  for (int64_t m = 0; m < M; m++) {
    double total = 0, all = 0, dot = 0;
    int place[E];
    for (int e = 0; e < E; e++) {
      place[e] = 0;
      for (int o = 0; o < E; o++) place[e] += at(logits, m, o) > at(logits, m, e);
      all += exp(at(logits, m, e));
      if (place[e] < TOP) total += exp(at(logits, m, e));
      if (place[e] < TOP) EXPECT(route->chosen[m * TOP + place[e]] == e, "row %d has expert %d", (int)m, e);
    }
    if (flags & LOWRANK_SOFTMAX_OF_ALL) total = all;
    for (int e = 0; e < E; e++) {
      if (place[e] < TOP) dot += exp(at(logits, m, e)) / total * at(dg, m, place[e]);
    }
    for (int e = 0; e < E; e++) {
      const int in = place[e] < TOP, counts = in || (flags & LOWRANK_SOFTMAX_OF_ALL);
      const double p = counts ? exp(at(logits, m, e)) / total : 0;
      if (in) CLOSE("gate", at(gates, m, place[e]), p, p, F32);
      CLOSE("dLogits", at(dl, m, e), p * ((in ? at(dg, m, place[e]) : 0) - dot), p * (1 + fabs(dot)), F32);
    }
  }
  tensor_free(logits), tensor_free(dg), tensor_free(dl);
}

static void check_route(uint32_t device, Route *route) {
  route->chosen[3] = -1;
  lowrank_route_rows_args args = {.size = sizeof args, .device = device, .experts = &route->of_chosen, .route = &route->view};
  OK(lowrank_route_rows(&args));
  int64_t slot = 0;
  for (int e = 0; e <= E; e++) {
    EXPECT(route->offsets[e] == slot, "offset %d of expert %d", route->offsets[e], e);
    for (int64_t pair = 0; pair < S; pair++) {
      if (route->chosen[pair] != (e == E ? -1 : e)) continue;
      EXPECT(route->order[slot] == pair && route->inverse[pair] == slot, "slot %d", (int)slot);
      slot++;
    }
  }
  route->chosen[0] = E;
  REFUSED(lowrank_route_rows(&args), LOWRANK_ERR_VALUE, "experts[0] must be from -1 to 4", "got 5");
  route->chosen[0] = route->order[0];
  route->view.k = E + 1;
  REFUSED(lowrank_route_rows(&args), LOWRANK_ERR_VALUE, "route.k must be from 1 to the 5 experts", "got 6");
  route->view.k = 4;
  REFUSED(lowrank_route_rows(&args), LOWRANK_ERR_SHAPE, "a multiple of k = 4", "22");
  route->view.k = TOP;
  args.experts = NULL;
  REFUSED(lowrank_route_rows(&args), LOWRANK_ERR_TYPE, "experts", "NULL");
}

/* Factors for each expert, or shared by all; x for each row, or for each slot. */
static void check_product(uint32_t device, int dtype, int shared, int by_slot, const Route *route) {
  const int sets = shared ? 1 : E;
  Tensor *x = tensor_new(dtype, by_slot ? S : M, K, 3, 1), *w = tensor_new(dtype, E * N, K, 4, 1), *bias = tensor_new(F32, E, N, 5, 1);
  Tensor *a = tensor_new(dtype, sets * R, K, 6, 1), *b = tensor_new(F32, sets * N, R, 7, 1), *h = tensor_new(F32, S, R, 0, 0);
  Tensor *y = tensor_new(dtype, S, N, 0, 0), *dy = tensor_new(dtype, S, N, 8, 1), *dx = tensor_new(dtype, S, K, 0, 0);
  Tensor *da = tensor_new(F32, sets * R, K, 0, 0), *db = tensor_new(F32, sets * N, R, 0, 0);
  const double scaling = 1.5;
  const uint32_t flags = by_slot ? LOWRANK_X_BY_SLOT : 0;
  lowrank_weight *weight = NULL;
  OK(lowrank_weight_wrap(&w->t, NULL, NULL, &weight));
  lowrank_experts_matmul_args f = {.size = sizeof f, .device = device, .flags = flags, .x = &x->t, .w = weight, .bias = &bias->t};
  f.route = &route->view, f.lora_a = &a->t, f.lora_b = &b->t, f.scaling = (float)scaling, f.h = &h->t, f.y = &y->t;
  lowrank_experts_matmul_backward_args g = {.size = sizeof g, .device = device, .flags = flags, .dy = &dy->t, .w = weight, .x = &x->t};
  g.route = &route->view, g.lora_a = &a->t, g.lora_b = &b->t, g.h = &h->t, g.scaling = (float)scaling;
  g.dx = &dx->t, g.d_lora_a = &da->t, g.d_lora_b = &db->t;
  OK(lowrank_experts_matmul(&f));
  OK(lowrank_experts_matmul_backward(&g));
  tensor_load(h), tensor_load(y), tensor_load(dx), tensor_load(da), tensor_load(db);
  double *sa = calloc((size_t)(sets * R * K), sizeof(double)), *ta = calloc((size_t)(sets * R * K), sizeof(double));
  double *sb = calloc((size_t)(sets * N * R), sizeof(double)), *tb = calloc((size_t)(sets * N * R), sizeof(double));
  for (int64_t s = 0; s < S; s++) {
    const int e = expert_of(route, s), set = shared ? 0 : e;
    const int64_t row = by_slot ? s : route->order[s] / TOP;
    double eh[R] = {0}, th[R] = {0}, dh[R] = {0}, tdh[R] = {0};
    for (int r = 0; r < R && e >= 0; r++) {
      for (int64_t k = 0; k < K; k++) {
        const double product = at(x, row, k) * at(a, set * R + r, k);
        eh[r] += product, th[r] += fabs(product);
      }
      for (int64_t n = 0; n < N; n++) {
        const double product = scaling * at(dy, s, n) * at(b, set * N + n, r);
        dh[r] += product, tdh[r] += fabs(product);
      }
      for (int64_t k = 0; k < K; k++) {
        sa[(set * R + r) * K + k] += dh[r] * at(x, row, k), ta[(set * R + r) * K + k] += 2 * tdh[r] * fabs(at(x, row, k));
      }
      for (int64_t n = 0; n < N; n++) {
        sb[(set * N + n) * R + r] += scaling * at(dy, s, n) * eh[r], tb[(set * N + n) * R + r] += 2 * scaling * fabs(at(dy, s, n)) * th[r];
      }
    }
    for (int r = 0; r < R; r++) CLOSE("h", at(h, s, r), eh[r], th[r], F32);
    for (int64_t n = 0; n < N; n++) {
      double exact = 0, terms = 0;
      for (int64_t k = 0; k < K && e >= 0; k++) exact += at(x, row, k) * at(w, e * N + n, k), terms += fabs(at(x, row, k) * at(w, e * N + n, k));
      for (int r = 0; r < R && e >= 0; r++) exact += scaling * eh[r] * at(b, set * N + n, r), terms += 2 * scaling * th[r] * fabs(at(b, set * N + n, r));
      if (e >= 0) exact += at(bias, e, n), terms += fabs(at(bias, e, n));
      CLOSE("y", at(y, s, n), exact, terms, dtype);
    }
    for (int64_t k = 0; k < K; k++) {
      double exact = 0, terms = 0;
      for (int64_t n = 0; n < N && e >= 0; n++) exact += at(dy, s, n) * at(w, e * N + n, k), terms += fabs(at(dy, s, n) * at(w, e * N + n, k));
      for (int r = 0; r < R && e >= 0; r++) exact += dh[r] * at(a, set * R + r, k), terms += 2 * tdh[r] * fabs(at(a, set * R + r, k));
      CLOSE("dx", at(dx, s, k), exact, terms, dtype);
    }
  }
  for (int64_t i = 0; i < da->count; i++) CLOSE("dLoraA", da->values[i], sa[i], ta[i], F32);
  for (int64_t i = 0; i < db->count; i++) CLOSE("dLoraB", db->values[i], sb[i], tb[i], F32);
  OK(lowrank_weight_release(weight));
  free(sa), free(ta), free(sb), free(tb);
  tensor_free(x), tensor_free(w), tensor_free(bias), tensor_free(a), tensor_free(b), tensor_free(h), tensor_free(y);
  tensor_free(dy), tensor_free(dx), tensor_free(da), tensor_free(db);
}

static void check_sum(uint32_t device, Route *route, const Tensor *gates) {
  Tensor *y = tensor_new(F32, S, N, 9, 1), *out = tensor_new(F32, M, N, 0, 0), *dout = tensor_new(F32, M, N, 10, 1);
  Tensor *dy = tensor_new(F32, S, N, 0, 0), *dg = tensor_new(F32, M, TOP, 0, 0);
  lowrank_combine_rows_args c = {.size = sizeof c, .device = device, .y = &y->t, .route = &route->view, .gates = &gates->t, .out = &out->t};
  lowrank_combine_rows_backward_args b = {.size = sizeof b, .device = device, .d_out = &dout->t, .y = &y->t, .route = &route->view};
  b.gates = &gates->t, b.dy = &dy->t, b.d_gates = &dg->t;

  /* A kernel writes where a route points: each is checked. */
  int32_t *const entries[] = {&route->inverse[0], &route->order[1], &route->offsets[0], &route->offsets[2]};
  const char *const names[] = {"route.inverse[", "route.inverse[", "route.offsets[0] must be 0", "route.offsets["};
  for (int i = 0; i < 4; i++) {
    const int32_t was = *entries[i];
    *entries[i] = i == 0 ? (was + 1) % S : i == 1 ? route->order[0] : i == 2 ? 1 : S;
    REFUSED(lowrank_combine_rows(&c), LOWRANK_ERR_VALUE, "combineRows", names[i]);
    REFUSED(lowrank_combine_rows_backward(&b), LOWRANK_ERR_VALUE, "combineRowsBackward", names[i]);
    *entries[i] = was;
  }
  route->slots = S - TOP;
  REFUSED(lowrank_combine_rows(&c), LOWRANK_ERR_VALUE, "route.", "must be from 0 to");
  route->slots = S;
  EXPECT(tensor_untouched(out) && tensor_untouched(dy) && tensor_untouched(dg), "a refusal wrote");

  OK(lowrank_combine_rows(&c));
  OK(lowrank_combine_rows_backward(&b));
  tensor_load(out), tensor_load(dy), tensor_load(dg);
  for (int64_t m = 0; m < M; m++) {
    double sums[N] = {0}, terms[N] = {0};
    for (int64_t j = 0; j < TOP; j++) {
      const int64_t s = route->inverse[m * TOP + j];
      const int kept = expert_of(route, s) >= 0;
      double dot = 0, parts = 0;
      for (int64_t n = 0; n < N; n++) {
        const double product = kept ? at(gates, m, j) * at(y, s, n) : 0;
        sums[n] += product, terms[n] += fabs(product);
        dot += kept ? at(dout, m, n) * at(y, s, n) : 0, parts += fabs(at(dout, m, n) * at(y, s, n));
        CLOSE("dy", at(dy, s, n), kept ? at(gates, m, j) * at(dout, m, n) : 0, 0, F32);
      }
      CLOSE("dGates", at(dg, m, j), dot, parts, F32);
    }
    for (int64_t n = 0; n < N; n++) CLOSE("out", at(out, m, n), sums[n], terms[n], F32);
  }
  c.gates = NULL;
  OK(lowrank_combine_rows(&c));
  tensor_load(out);
  const int64_t first = route->inverse[0], second = route->inverse[1];
  for (int64_t n = 0; n < N; n++) CLOSE("out", at(out, 0, n), at(y, first, n) + at(y, second, n), 2, F32);
  tensor_free(y), tensor_free(out), tensor_free(dout), tensor_free(dy), tensor_free(dg);
}

void run_experts(uint32_t device) {
  Route route;
  Tensor *gates = tensor_new(F32, M, TOP, 0, 0);
  start(&route);
  check_choice(device, LOWRANK_SOFTMAX_OF_ALL, &route, gates);
  check_choice(device, 0, &route, gates);
  check_route(device, &route);
  for (int shared = 0; shared < 2; shared++) {
    for (int by_slot = 0; by_slot < 2; by_slot++) check_product(device, F32, shared, by_slot, &route);
  }
  check_product(device, BF16, 0, 0, &route);
  check_sum(device, &route, gates);
  tensor_free(gates);
}
