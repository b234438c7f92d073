/* Trains an adapter of a weight in NF4: five steps of gradient descent towards y = t.
 *
 *   gcc lora.c $(pkg-config --cflags --libs lowrank) -lm -o lora && ./lora */
#include <lowrank.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { M = 8, N = 64, K = 128, R = 4, STEPS = 5 };

static float x[M * K], w[N * K], a[R * K], b[N * R], t[M * N];           /* what is given */
static float h[M * R], y[M * N], dy[M * N], d_a[R * K], d_b[N * R];      /* what a step makes */

/* A row-major float32 matrix of the program; `shape` stays while the tensor is used. */
static DLTensor matrix(float *data, int64_t *shape) {
  const DLTensor tensor = {.data = data, .device = {kDLCPU, 0}, .ndim = 2, .dtype = {kDLFloat, 32, 1}, .shape = shape};
  return tensor;
}

static void check(int32_t code) {
  if (code == LOWRANK_OK) return;
  fprintf(stderr, "%s: %s\n", lowrank_code_name(code), lowrank_last_error());
  exit(1);
}

int main(void) {
  int64_t mk[] = {M, K}, nk[] = {N, K}, rk[] = {R, K}, nr[] = {N, R}, mr[] = {M, R}, mn[] = {M, N};
  DLTensor tx = matrix(x, mk), tw = matrix(w, nk), ta = matrix(a, rk), tb = matrix(b, nr), th = matrix(h, mr);
  DLTensor ty = matrix(y, mn), tdy = matrix(dy, mn), tda = matrix(d_a, rk), tdb = matrix(d_b, nr);
  for (int i = 0; i < M * K; i++) x[i] = (float)sin(i);
  for (int i = 0; i < N * K; i++) w[i] = (float)(0.1 * cos(3 * i));
  for (int i = 0; i < R * K; i++) a[i] = (float)(0.1 * sin(7 * i));
  for (int i = 0; i < M * N; i++) t[i] = (float)cos(i);

  lowrank_weight *weight = NULL;
  lowrank_quantize_args quantize = {.size = sizeof quantize, .w = &tw, .format = "nf4"};
  check(lowrank_weight_quantize(&quantize, &weight));
  lowrank_lora_forward_args forward = {.size = sizeof forward, .x = &tx, .w = weight, .lora_a = &ta, .lora_b = &tb, .scaling = 2, .h = &th, .y = &ty};
  lowrank_lora_backward_args backward = {.size = sizeof backward, .dy = &tdy, .x = &tx, .lora_a = &ta, .lora_b = &tb, .h = &th, .scaling = 2, .d_lora_a = &tda, .d_lora_b = &tdb};
  for (int step = 1; step <= STEPS; step++) {
    double loss = 0;
    check(lowrank_lora_forward(&forward));
    for (int i = 0; i < M * N; i++) {
      dy[i] = (y[i] - t[i]) / (M * N);
      loss += 0.5 * (y[i] - t[i]) * (y[i] - t[i]) / (M * N);
    }
    check(lowrank_lora_backward(&backward));
    for (int i = 0; i < R * K; i++) a[i] -= 4 * d_a[i];
    for (int i = 0; i < N * R; i++) b[i] -= 4 * d_b[i];
    printf("step %d loss %.4f\n", step, loss);
  }
  check(lowrank_weight_release(weight));
  return 0;
}
