/* bits IN OUT M N K r: from the floats of IN (x, w, lora_a, lora_b, dy) an NF4 layer forward and
 * backward; OUT gets y, h, dx, d_lora_a, d_lora_b, the codes and the scales. */
#include <lowrank.h>
#include <stdio.h>
#include <stdlib.h>

static DLTensor *matrix(float *data, int64_t rows, int64_t cols) {
  DLTensor *tensor = calloc(1, sizeof *tensor);
  int64_t *shape = malloc(2 * sizeof *shape);
  shape[0] = rows, shape[1] = cols;
  tensor->data = data != NULL ? data : calloc((size_t)(rows * cols), sizeof(float));
  tensor->device.device_type = kDLCPU;
  tensor->ndim = 2;
  tensor->dtype.code = kDLFloat, tensor->dtype.bits = 32, tensor->dtype.lanes = 1;
  tensor->shape = shape;
  return tensor;
}

static DLTensor *read_matrix(FILE *in, int64_t rows, int64_t cols) {
  DLTensor *tensor = matrix(NULL, rows, cols);
  if (fread(tensor->data, sizeof(float), (size_t)(rows * cols), in) != (size_t)(rows * cols)) exit(2);
  return tensor;
}

static void check(int32_t code) {
  if (code == LOWRANK_OK) return;
  fprintf(stderr, "%s\n", lowrank_last_error());
  exit(1);
}

static void write_tensor(FILE *out, const DLTensor *tensor) {
  size_t count = tensor->dtype.bits / 8;
  for (int i = 0; i < tensor->ndim; i++) count *= (size_t)tensor->shape[i];
  fwrite(tensor->data, 1, count, out);
}

int main(int argc, char **argv) {
  if (argc != 7) return 2;
  const int64_t M = atoi(argv[3]), N = atoi(argv[4]), K = atoi(argv[5]), r = atoi(argv[6]);
  FILE *in = fopen(argv[1], "rb"), *out = fopen(argv[2], "wb");
  if (in == NULL || out == NULL) return 2;
  DLTensor *x = read_matrix(in, M, K), *w = read_matrix(in, N, K), *a = read_matrix(in, r, K);
  DLTensor *b = read_matrix(in, N, r), *dy = read_matrix(in, M, N);
  DLTensor *y = matrix(NULL, M, N), *h = matrix(NULL, M, r), *dx = matrix(NULL, M, K);
  DLTensor *da = matrix(NULL, r, K), *db = matrix(NULL, N, r);
  lowrank_weight *weight = NULL;
  lowrank_quantize_args q = {.size = sizeof q, .w = w, .format = "nf4"};
  check(lowrank_weight_quantize(&q, &weight));
  lowrank_lora_forward_args f = {.size = sizeof f, .x = x, .w = weight, .lora_a = a, .lora_b = b};
  f.dropout = 0.125, f.seed = 42, f.scaling = 2, f.h = h, f.y = y;
  check(lowrank_lora_forward(&f));
  lowrank_lora_backward_args g = {.size = sizeof g, .dy = dy, .x = x, .w = weight, .lora_a = a, .lora_b = b, .h = h};
  g.dropout = 0.125, g.seed = 42, g.scaling = 2, g.dx = dx, g.d_lora_a = da, g.d_lora_b = db;
  check(lowrank_lora_backward(&g));
  DLManagedTensorVersioned *codes = NULL, *absmax = NULL;
  check(lowrank_weight_part(weight, "codes", &codes));
  check(lowrank_weight_part(weight, "absmax", &absmax));
  const DLTensor *all[] = {y, h, dx, da, db, &codes->dl_tensor, &absmax->dl_tensor};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) write_tensor(out, all[i]);
  codes->deleter(codes), absmax->deleter(absmax);
  check(lowrank_weight_release(weight));
  return fclose(out);
}
