/* A decoder's ops around its linear layers, and the optimiser, each against its formula in double. */
#include "check.h"

enum { M = 6, D = 32, V = 50 };

#define CLOSE(name, value, exact, terms, dtype) \
  EXPECT(within(value, exact, terms, dtype), name " %g, exact %g", (double)(value), (double)(exact))

static void check_embedding_and_loss(uint32_t device) {
  Tensor *x = tensor_new(F32, M, D, 1, 1), *head = tensor_new(F32, V, D, 2, 1), *y = tensor_new(F32, M, D, 0, 0);
  Tensor *losses = tensor_new(F32, 1, M, 0, 0), *dx = tensor_new(F32, M, D, 0, 0);
  int32_t ids[M] = {3, 0, V - 1, -1, 7, 7};
  int64_t count = M;
  DLTensor of_ids = index_tensor(ids, 1, &count);
  lowrank_weight *table = NULL;
  OK(lowrank_weight_wrap(&head->t, NULL, NULL, &table));
  lowrank_embedding_args e = {.size = sizeof e, .device = device, .ids = &of_ids, .table = table, .scale = 3, .y = &y->t};
  OK(lowrank_embedding(&e));
  lowrank_linear_cross_entropy_args l = {.size = sizeof l, .device = device, .x = &x->t, .head = table, .targets = &of_ids};
  l.scale = 0.5f, l.losses = &losses->t, l.dx = &dx->t;
  OK(lowrank_linear_cross_entropy(&l));
  tensor_load(y), tensor_load(losses), tensor_load(dx);
  for (int64_t m = 0; m < M; m++) {
    double z[V], total = 0, terms = 0;
    for (int64_t v = 0; v < V; v++) {
      z[v] = 0;
      for (int64_t d = 0; d < D; d++) z[v] += at(x, m, d) * at(head, v, d), terms += fabs(at(x, m, d) * at(head, v, d));
    }
    for (int64_t v = 0; v < V; v++) total += exp(z[v]);
    CLOSE("loss", at(losses, 0, m), ids[m] < 0 ? 0 : log(total) - z[ids[m]], terms, F32);
    for (int64_t d = 0; d < D; d++) {
      double exact = 0, parts = 0;
      for (int64_t v = 0; v < V && ids[m] >= 0; v++) {
        const double p = exp(z[v]) / total - (v == ids[m]);
        exact += 0.5 * p * at(head, v, d), parts += (fabs(p) + terms * exp(z[v]) / total) * fabs(at(head, v, d));
      }
      CLOSE("dx", at(dx, m, d), exact, parts, F32);
      CLOSE("row", at(y, m, d), ids[m] < 0 ? 0 : 3 * at(head, ids[m], d), 0, F32);
    }
  }
  ids[2] = V;
  REFUSED(lowrank_embedding(&e), LOWRANK_ERR_VALUE, "ids[2] must be from -1 to 49", "50");
  REFUSED(lowrank_linear_cross_entropy(&l), LOWRANK_ERR_VALUE, "targets[2] must be", "50");
  ids[2] = -2;
  REFUSED(lowrank_embedding(&e), LOWRANK_ERR_VALUE, "ids[2] must be", "-2");
  of_ids.dtype.bits = 64;
  REFUSED(lowrank_embedding(&e), LOWRANK_ERR_DTYPE, "ids must be int32", "int64");
  OK(lowrank_weight_release(table));
  tensor_free(x), tensor_free(head), tensor_free(y), tensor_free(losses), tensor_free(dx);
}

static void check_norm(uint32_t device) {
  Tensor *x = tensor_new(F32, M, D, 3, 1), *res = tensor_new(F32, M, D, 4, 1), *g = tensor_new(F32, 1, D, 5, 1), *dy = tensor_new(F32, M, D, 6, 1);
  Tensor *sum = tensor_new(F32, M, D, 0, 0), *y = tensor_new(F32, M, D, 0, 0), *inv = tensor_new(F32, 1, M, 0, 0);
  Tensor *dx = tensor_new(F32, M, D, 0, 0), *dg = tensor_new(F32, 1, D, 0, 0);
  lowrank_rms_norm_args f = {.size = sizeof f, .device = device, .flags = LOWRANK_GAIN_PLUS_ONE, .x = &x->t, .residual = &res->t};
  f.g = &g->t, f.eps = 1e-5f, f.sum = &sum->t, f.y = &y->t, f.inv_rms = &inv->t;
  OK(lowrank_rms_norm(&f));
  lowrank_rms_norm_backward_args b = {.size = sizeof b, .device = device, .flags = LOWRANK_GAIN_PLUS_ONE, .dy = &dy->t, .s = &sum->t};
  b.g = &g->t, b.inv_rms = &inv->t, b.dx = &dx->t, b.dg = &dg->t;
  OK(lowrank_rms_norm_backward(&b));
  tensor_load(sum), tensor_load(y), tensor_load(inv), tensor_load(dx), tensor_load(dg);
  double dg_exact[D] = {0}, dg_terms[D] = {0};
  for (int64_t m = 0; m < M; m++) {
    double squares = 0, c = 0, c_terms = 0;
    for (int64_t d = 0; d < D; d++) squares += at(sum, m, d) * at(sum, m, d);
    const double rms = 1 / sqrt(squares / D + 1e-5);
    CLOSE("invRms", at(inv, 0, m), rms, rms, F32);
    for (int64_t d = 0; d < D; d++) {
      const double u = (1 + at(g, 0, d)) * at(dy, m, d);
      c += at(sum, m, d) * u, c_terms += fabs(at(sum, m, d) * u);
    }
    for (int64_t d = 0; d < D; d++) {
      const double s = at(sum, m, d), u = (1 + at(g, 0, d)) * at(dy, m, d);
      CLOSE("sum", s, at(x, m, d) + at(res, m, d), 0, F32);
      CLOSE("y", at(y, m, d), s * rms * (1 + at(g, 0, d)), fabs(s * rms * (1 + at(g, 0, d))), F32);
      CLOSE("dx", at(dx, m, d), rms * u - s * rms * rms * rms * c / D, fabs(rms * u) + fabs(s * rms * rms * rms) * c_terms / D, F32);
      dg_exact[d] += at(dy, m, d) * s * rms, dg_terms[d] += fabs(at(dy, m, d) * s * rms);
    }
  }
  for (int64_t d = 0; d < D; d++) CLOSE("dg", at(dg, 0, d), dg_exact[d], dg_terms[d], F32);
  f.sum = NULL;
  REFUSED(lowrank_rms_norm(&f), LOWRANK_ERR_VALUE, "sum must be present with residual", "absent");
  Tensor *all[] = {x, res, g, dy, sum, y, inv, dx, dg};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) tensor_free(all[i]);
}

enum { SEQUENCES = 2, T = 5, ROWS = SEQUENCES * T, HEADS = 4, KV = 2, SIZE = 8 };

/* o from q, k and v in double; with `lift`, element i of tensor number `which` is greater by it. */
static void attend(const double *const in[3], int which, int64_t i, double lift, double *o) {
  const double scale = 1 / sqrt(SIZE);
  double *moved = malloc(ROWS * HEADS * SIZE * sizeof(double));
  const double *part[3] = {in[0], in[1], in[2]};
  memcpy(moved, in[which], ROWS * (which == 0 ? HEADS : KV) * SIZE * sizeof(double));
  moved[i] += lift;
  part[which] = moved;
  for (int s = 0; s < SEQUENCES; s++) {
    for (int t = 0; t < T; t++) {
      for (int h = 0; h < HEADS; h++) {
        const int kv = h / (HEADS / KV);
        double score[T], total = 0;
        for (int j = 0; j <= t; j++) {
          score[j] = 0;
          for (int e = 0; e < SIZE; e++) {
            score[j] += part[0][(s * T + t) * HEADS * SIZE + h * SIZE + e] * part[1][(s * T + j) * KV * SIZE + kv * SIZE + e];
          }
          total += score[j] = exp(scale * score[j]);
        }
        for (int e = 0; e < SIZE; e++) {
          double *out = &o[(s * T + t) * HEADS * SIZE + h * SIZE + e];
          *out = 0;
          for (int j = 0; j <= t; j++) *out += score[j] / total * part[2][(s * T + j) * KV * SIZE + kv * SIZE + e];
        }
      }
    }
  }
  free(moved);
}

/* The output against loops, the gradients against differences of those loops. */
static void check_attention(uint32_t device) {
  Tensor *q = tensor_new(F32, ROWS, HEADS * SIZE, 7, 1), *k = tensor_new(F32, ROWS, KV * SIZE, 8, 1), *v = tensor_new(F32, ROWS, KV * SIZE, 9, 1);
  Tensor *d_o = tensor_new(F32, ROWS, HEADS * SIZE, 10, 1), *o = tensor_new(F32, ROWS, HEADS * SIZE, 0, 0), *lse = tensor_new(F32, HEADS, ROWS, 0, 0);
  Tensor *grads[3] = {tensor_new(F32, ROWS, HEADS * SIZE, 0, 0), tensor_new(F32, ROWS, KV * SIZE, 0, 0), tensor_new(F32, ROWS, KV * SIZE, 0, 0)};
  lowrank_attention_args f = {.size = sizeof f, .device = device, .q = &q->t, .k = &k->t, .v = &v->t, .sequences = SEQUENCES};
  f.heads = HEADS, f.kv_heads = KV, f.head_dim = SIZE, f.scale = 1 / sqrtf(SIZE), f.o = &o->t, f.lse = &lse->t;
  OK(lowrank_attention(&f));
  lowrank_attention_backward_args b = {.size = sizeof b, .device = device, .q = &q->t, .k = &k->t, .v = &v->t, .o = &o->t, .lse = &lse->t};
  b.d_o = &d_o->t, b.sequences = SEQUENCES, b.heads = HEADS, b.kv_heads = KV, b.head_dim = SIZE, b.scale = f.scale;
  b.dq = &grads[0]->t, b.dk = &grads[1]->t, b.dv = &grads[2]->t;
  OK(lowrank_attention_backward(&b));
  tensor_load(o);
  enum { COUNT = ROWS * HEADS * SIZE };
  static double low[COUNT], high[COUNT];
  const double *const in[3] = {q->values, k->values, v->values};
  attend(in, 0, 0, 0, low);
  for (int i = 0; i < COUNT; i++) CLOSE("o", o->values[i], low[i], 4, F32);
  for (int which = 0; which < 3; which++) {
    tensor_load(grads[which]);
    for (int64_t i = 0; i < grads[which]->count; i++) {
      double slope = 0;
      attend(in, which, i, -1e-4, low);
      attend(in, which, i, 1e-4, high);
      for (int j = 0; j < COUNT; j++) slope += d_o->values[j] * (high[j] - low[j]) / 2e-4;
      EXPECT(fabs(grads[which]->values[i] - slope) < 2e-5, "gradient %d: %g, slope %g", which, grads[which]->values[i], slope);
    }
  }
  f.kv_heads = 3;
  REFUSED(lowrank_attention(&f), LOWRANK_ERR_VALUE, "attention", "3");
  f.kv_heads = -1;
  REFUSED(lowrank_attention(&f), LOWRANK_ERR_VALUE, "kvHeads must be from 1", "-1");
  f.kv_heads = KV, f.sequences = 0;
  REFUSED(lowrank_attention(&f), LOWRANK_ERR_VALUE, "sequences must be from 1", "0");
  f.sequences = SEQUENCES, f.head_dim = INT64_MAX;
  REFUSED(lowrank_attention(&f), LOWRANK_ERR_VALUE, "headDim must be from 2 to 256", "9223372036854775807");
  tensor_free(q), tensor_free(k), tensor_free(v), tensor_free(d_o), tensor_free(o), tensor_free(lse);
  for (int i = 0; i < 3; i++) tensor_free(grads[i]);
}

/* Three steps of two parameters, with the norm of the gradients cut. */
static void check_optimizer(uint32_t device) {
  Tensor *p[2], *g[2], *m[2], *v[2], *norm = tensor_new(F32, 1, 1, 0, 0);
  double pp[2][M * D], mm[2][M * D] = {{0}}, vv[2][M * D] = {{0}};
  lowrank_parameter parameters[2];
  lowrank_parameter *list[2] = {&parameters[0], &parameters[1]};
  const DLTensor *gradients[2];
  for (int i = 0; i < 2; i++) {
    p[i] = tensor_new(F32, M, D, 30 + (uint64_t)i, 1), g[i] = tensor_new(F32, M, D, 40 + (uint64_t)i, 1);
    m[i] = tensor_new(F32, M, D, 1, 1), v[i] = tensor_new(F32, M, D, 1, 1);
    memset(m[i]->memory, 0, M * D * 4), memset(v[i]->memory, 0, M * D * 4);
    memcpy(pp[i], p[i]->values, sizeof pp[i]);
    const lowrank_parameter one = {.size = sizeof one, .p = &p[i]->t, .g = &g[i]->t, .m = &m[i]->t, .v = &v[i]->t, .lr_scale = 1};
    parameters[i] = one;
    parameters[i].weight_decay = 0.1f * (float)i;
    gradients[i] = &g[i]->t;
  }
  lowrank_global_norm_args n = {.size = sizeof n, .device = device, .tensors = gradients, .count = 2, .norm = &norm->t};
  lowrank_adamw_step_args s = {.size = sizeof s, .device = device, .parameters = list, .count = 2, .beta1 = 0.9, .beta2 = 0.999};
  s.eps = 1e-8f, s.lr = 0.01f, s.norm = &norm->t, s.max_norm = 2;
  for (int step = 1; step <= 3; step++) {
    OK(lowrank_global_norm(&n));
    s.step = step;
    OK(lowrank_adamw_step(&s));
    double squares = 0;
    for (int i = 0; i < 2; i++) for (int j = 0; j < M * D; j++) squares += g[i]->values[j] * g[i]->values[j];
    const double cut = fmin(1, 2 / sqrt(squares));
    tensor_load(norm);
    EXPECT(fabs(norm->values[0] / sqrt(squares) - 1) < 1e-6, "norm %g", norm->values[0]);
    for (int i = 0; i < 2; i++) {
      tensor_load(p[i]);
      for (int j = 0; j < M * D; j++) {
        const double gg = cut * g[i]->values[j];
        mm[i][j] = 0.9 * mm[i][j] + 0.1 * gg, vv[i][j] = 0.999 * vv[i][j] + 0.001 * gg * gg;
        pp[i][j] -= 0.01 * (0.1 * i) * pp[i][j];
        pp[i][j] -= 0.01 * (mm[i][j] / (1 - pow(0.9, step))) / (sqrt(vv[i][j] / (1 - pow(0.999, step))) + 1e-8);
        EXPECT(fabs(p[i]->values[j] - pp[i][j]) < 1e-6, "p %g, exact %g", p[i]->values[j], pp[i][j]);
      }
    }
  }
  s.step = 0;
  REFUSED(lowrank_adamw_step(&s), LOWRANK_ERR_VALUE, "step", "0");
  s.step = 4, s.count = -1;
  REFUSED(lowrank_adamw_step(&s), LOWRANK_ERR_VALUE, "count must be from 1", "-1");
  s.count = 2, parameters[1].v = NULL;
  REFUSED(lowrank_adamw_step(&s), LOWRANK_ERR_TYPE, "v must be a tensor", "NULL");
  n.count = 0;
  REFUSED(lowrank_global_norm(&n), LOWRANK_ERR_VALUE, "count must be from 1", "0");
  for (int i = 0; i < 2; i++) tensor_free(p[i]), tensor_free(g[i]), tensor_free(m[i]), tensor_free(v[i]);
  tensor_free(norm);
}

void run_model(uint32_t device) {
  check_embedding_and_loss(device);
  check_norm(device);
  check_attention(device);
  check_optimizer(device);
}
