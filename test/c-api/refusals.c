/* Every refusal is a code and a sentence with the expected and the actual value; outputs stay as they
 * were, and the next call works. */
#include "check.h"

enum { M = 3, N = 4, K = 64, R = 2 };

typedef struct {
  Tensor *x, *w, *a, *b, *h, *y;
  lowrank_weight *weight;
  lowrank_lora_forward_args args;
} Layer;

static Layer *layer_new(void) {
  Layer *l = calloc(1, sizeof *l);
  l->x = tensor_new(F32, M, K, 1, 1), l->w = tensor_new(F32, N, K, 2, 1);
  l->a = tensor_new(F32, R, K, 3, 1), l->b = tensor_new(F32, N, R, 4, 1);
  l->h = tensor_new(F32, M, R, 0, 0), l->y = tensor_new(F32, M, N, 0, 0);
  OK(lowrank_weight_wrap(&l->w->t, NULL, NULL, &l->weight));
  l->args.size = sizeof l->args;
  l->args.x = &l->x->t, l->args.w = l->weight, l->args.lora_a = &l->a->t, l->args.lora_b = &l->b->t;
  l->args.h = &l->h->t, l->args.y = &l->y->t, l->args.scaling = 1;
  return l;
}

static void layer_free(Layer *l) {
  OK(lowrank_weight_release(l->weight));
  tensor_free(l->x), tensor_free(l->w), tensor_free(l->a), tensor_free(l->b), tensor_free(l->h), tensor_free(l->y);
  free(l);
}

/* One change to a good call, refused; then the good call again. */
#define WRONG(change, undo, code, text, other)                             \
  do {                                                                     \
    change;                                                                \
    REFUSED(lowrank_lora_forward(&l->args), code, text, other);            \
    EXPECT(tensor_untouched(l->y) && tensor_untouched(l->h), "untouched"); \
    undo;                                                                  \
  } while (0)

static void check_operands(void) {
  Layer *l = layer_new();
  DLTensor *x = &l->x->t;
  WRONG(l->args.x = NULL, l->args.x = x, LOWRANK_ERR_TYPE, "loraForward: x must be a tensor", "NULL");
  WRONG(l->args.w = NULL, l->args.w = l->weight, LOWRANK_ERR_TYPE, "w must be a weight", "NULL");
  WRONG(l->args.w = (lowrank_weight *)&l->args, l->args.w = l->weight, LOWRANK_ERR_TYPE, "w must be a weight", "no weight");
  WRONG(l->args.h = NULL, l->args.h = &l->h->t, LOWRANK_ERR_TYPE, "h must be a tensor", "NULL");
  WRONG(l->x->shape[1] = K - 1, l->x->shape[1] = K, LOWRANK_ERR_SHAPE, "of K = 64", "[3, 63]");
  WRONG(l->x->shape[0] = -1, l->x->shape[0] = M, LOWRANK_ERR_SHAPE, "x must be", "[-1, 64]");
  WRONG(l->x->shape[0] = INT64_MAX, l->x->shape[0] = M, LOWRANK_ERR_SHAPE, "x must be", "9223372036854775807");
  WRONG(l->a->shape[0] = 1, l->a->shape[0] = R, LOWRANK_ERR_SHAPE, "loraB must be [4, 1]", "[4, 2]");
  WRONG(l->y->shape[0] = 2, l->y->shape[0] = M, LOWRANK_ERR_SHAPE, "y must be [3, 4]", "[2, 4]");
  WRONG(x->dtype.bits = 64, x->dtype.bits = 32, LOWRANK_ERR_DTYPE, "float32, bfloat16 or float16", "float64");
  WRONG(x->dtype.lanes = 4, x->dtype.lanes = 1, LOWRANK_ERR_DTYPE, "x must be", "4 lanes");
  WRONG(x->dtype.code = kDLInt, x->dtype.code = kDLFloat, LOWRANK_ERR_DTYPE, "x must be", "int32");
  WRONG(l->h->t.dtype.code = kDLBfloat; l->h->t.dtype.bits = 16, l->h->t.dtype.code = kDLFloat; l->h->t.dtype.bits = 32,
        LOWRANK_ERR_DTYPE, "h must be f32", "bf16");
  WRONG(l->args.scaling = NAN, l->args.scaling = 1, LOWRANK_ERR_VALUE, "scaling must be finite", "nan");
  WRONG(l->args.dropout = 1, l->args.dropout = 0, LOWRANK_ERR_VALUE, "dropout must be in [0, 1)", "1.0");
  WRONG(l->args.flags = 0x80, l->args.flags = 0, LOWRANK_ERR_VALUE, "flags", "128");
  WRONG(l->args.flags = LOWRANK_COMPUTE_INT8, l->args.flags = 0, LOWRANK_ERR_UNSUPPORTED, "int8", "dense f32");
  WRONG(l->args.reserved = 1, l->args.reserved = 0, LOWRANK_ERR_VALUE, "reserved must be 0", "1");
  WRONG(l->args.device = 9, l->args.device = 0, LOWRANK_ERR_VALUE, "device must be", "9");
  WRONG(l->args.stream = l, l->args.stream = NULL, LOWRANK_ERR_UNSUPPORTED, "stream must be NULL", "cpu");
  OK(lowrank_lora_forward(&l->args));
  EXPECT(lowrank_last_error()[0] == '\0', "a call that works leaves no sentence: %s", lowrank_last_error());
  layer_free(l);
}

static void check_memory(void) {
  Layer *l = layer_new();
  DLTensor *x = &l->x->t, *y = &l->y->t, *h = &l->h->t;
  void *data = x->data;
  int64_t gaps[2] = {K + 1, 1}, turned[2] = {1, M};
  WRONG(x->data = NULL, x->data = data, LOWRANK_ERR_DISPOSED, "x must be a tensor with memory", "NULL for [3, 64]");
  WRONG(x->byte_offset = 2, x->byte_offset = 0, LOWRANK_ERR_VALUE, "aligned to its elements of 4 bytes", "remainder 2");
  WRONG(x->byte_offset = UINT64_MAX - 8, x->byte_offset = 0, LOWRANK_ERR_SHAPE, "address space", "byte_offset");
  WRONG(x->strides = gaps, x->strides = NULL, LOWRANK_ERR_SHAPE, "row-major", "strides [65, 1]");
  WRONG(x->strides = turned, x->strides = NULL, LOWRANK_ERR_SHAPE, "row-major", "strides [1, 3]");
  WRONG(x->ndim = -1, x->ndim = 2, LOWRANK_ERR_SHAPE, "dimensions", "-1");
  WRONG(x->ndim = 1 << 30, x->ndim = 2, LOWRANK_ERR_SHAPE, "dimensions", "1073741824");
  WRONG(x->shape = NULL, x->shape = l->x->shape, LOWRANK_ERR_TYPE, "x must be a tensor with a shape", "NULL");
  WRONG(x->device.device_type = kDLCUDA, x->device.device_type = kDLCPU, LOWRANK_ERR_DEVICE, "on cuda:0, where x is", "the host");
  WRONG(x->device.device_type = (DLDeviceType)10, x->device.device_type = kDLCPU, LOWRANK_ERR_DEVICE, "x must be on the host or a CUDA device", "10");
  WRONG(h->data = y->data, h->data = l->h->memory, LOWRANK_ERR_ALIAS, "apart from", "overlapping");
  WRONG(y->data = (char *)x->data + 8, y->data = l->y->memory, LOWRANK_ERR_ALIAS, "y must be apart from x", "overlapping");
  WRONG(y->data = l->w->memory, y->data = l->y->memory, LOWRANK_ERR_ALIAS, "y must be apart from w", "overlapping");
  OK(lowrank_lora_forward(&l->args));
  layer_free(l);
}

/* Structs of other headers: older ones are shorter, newer ones longer. */
static void check_sizes(void) {
  Layer *l = layer_new();
  struct {
    lowrank_lora_forward_args args;
    uint64_t newer[3];
  } longer = {.args = l->args};
  WRONG(l->args.size = 0, l->args.size = sizeof l->args, LOWRANK_ERR_ABI, "size must be sizeof", "got 0");
  WRONG(l->args.size -= 8, l->args.size += 8, LOWRANK_ERR_ABI, "size must be sizeof", "got ");
  WRONG(l->args.size = SIZE_MAX, l->args.size = sizeof l->args, LOWRANK_ERR_ABI, "size must be sizeof", "18446744073709551615");
  longer.args.size = sizeof longer;
  longer.newer[2] = 1;
  REFUSED(lowrank_lora_forward(&longer.args), LOWRANK_ERR_ABI, "of a newer header", "this library (ABI 1)");
  EXPECT(tensor_untouched(l->y), "untouched");
  longer.newer[2] = 0;
  OK(lowrank_lora_forward(&longer.args));
  REFUSED(lowrank_lora_forward(NULL), LOWRANK_ERR_TYPE, "loraForward: the struct must be given", "NULL");
  lowrank_memory_info info = {.size = 8};
  REFUSED(lowrank_memory("cpu", &info), LOWRANK_ERR_ABI, "memory", "got 8");
  EXPECT(lowrank_abi() == LOWRANK_ABI && strlen(lowrank_version()) >= 5, "version %s", lowrank_version());
  EXPECT(strcmp(lowrank_code_name(LOWRANK_ERR_SHAPE), "ERR_SHAPE") == 0, "%s", lowrank_code_name(2));
  EXPECT(strcmp(lowrank_code_name(LOWRANK_ERR_ABI), "ERR_ABI") == 0, "%s", lowrank_code_name(14));
  EXPECT(strcmp(lowrank_code_name(-3), "ERR_UNKNOWN") == 0 && strcmp(lowrank_code_name(99), "ERR_UNKNOWN") == 0, "no such code");
  layer_free(l);
}

static void check_weights(void) {
  Tensor *w = tensor_new(F32, N, K, 5, 1);
  lowrank_weight *weight = (lowrank_weight *)w;
  lowrank_quantize_args q = {.size = sizeof q, .w = &w->t, .format = "nf5"};
  lowrank_memory_info before = {.size = sizeof before}, after = before;
  OK(lowrank_memory("cpu", &before));
  REFUSED(lowrank_weight_quantize(&q, &weight), LOWRANK_ERR_FORMAT, "format must be one of nf4", "\"nf5\"");
  q.format = NULL;
  REFUSED(lowrank_weight_quantize(&q, &weight), LOWRANK_ERR_TYPE, "format must be one of nf4", "NULL");
  q.format = "nf4", q.blocksize = 48;
  REFUSED(lowrank_weight_quantize(&q, &weight), LOWRANK_ERR_FORMAT, "power of two", "48");
  q.blocksize = -64;
  REFUSED(lowrank_weight_quantize(&q, &weight), LOWRANK_ERR_FORMAT, "power of two", "-64");
  q.blocksize = 0, q.flags = LOWRANK_ROWWISE;
  REFUSED(lowrank_weight_quantize(&q, &weight), LOWRANK_ERR_FORMAT, "int8", "nf4");
  q.flags = 0;
  REFUSED(lowrank_weight_quantize(&q, NULL), LOWRANK_ERR_TYPE, "weight must be where to write it", "NULL");
  ((float *)w->memory)[70] = INFINITY;
  REFUSED(lowrank_weight_quantize(&q, &weight), LOWRANK_ERR_NON_FINITE, "quantize", "70");
  w->t.ndim = 1;
  REFUSED(lowrank_weight_wrap(&w->t, NULL, NULL, &weight), LOWRANK_ERR_SHAPE, "w must be [N, K]", "1 dimensions");
  w->t.ndim = 2;
  lowrank_weight_parts parts = {.size = sizeof parts, .format = "nf4", .rows = N, .cols = K};
  REFUSED(lowrank_weight_from_parts(&parts, &weight), LOWRANK_ERR_FORMAT, "codes must be given", "NULL");
  Tensor *codes = tensor_new(U8, 1, N * K / 2, 0, 0), *absmax = tensor_new(F32, 1, N * K / 64, 6, 1);
  parts.codes = &absmax->t;
  REFUSED(lowrank_weight_from_parts(&parts, &weight), LOWRANK_ERR_DTYPE, "codes must be uint8", "float32");
  parts.codes = &codes->t;
  REFUSED(lowrank_weight_from_parts(&parts, &weight), LOWRANK_ERR_FORMAT, "complete", "parts missing");
  parts.absmax = &absmax->t, parts.rows = N + 1;
  REFUSED(lowrank_weight_from_parts(&parts, &weight), LOWRANK_ERR_FORMAT, "codes must be 160 elements", "128");
  parts.rows = INT64_MAX;
  REFUSED(lowrank_weight_from_parts(&parts, &weight), LOWRANK_ERR_SHAPE, "rows and cols", "9223372036854775807");
  EXPECT(weight == (lowrank_weight *)w, "no handle is written");
  OK(lowrank_memory("cpu", &after));
  EXPECT(before.live_bytes == after.live_bytes && before.live_weights == after.live_weights, "%lld bytes stay",
         (long long)(after.live_bytes - before.live_bytes));
  REFUSED(lowrank_weight_release(NULL), LOWRANK_ERR_TYPE, "weight must be a weight", "NULL");
  parts.rows = N;
  OK(lowrank_weight_from_parts(&parts, &weight));
  OK(lowrank_weight_retain(weight));
  OK(lowrank_weight_release(weight));
  DLManagedTensorVersioned *part = NULL;
  REFUSED(lowrank_weight_part(weight, "nested_absmax", &part), LOWRANK_ERR_FORMAT, "one of codes, codebook, absmax", "nested");
  OK(lowrank_weight_release(weight));
  REFUSED(lowrank_weight_release(weight), LOWRANK_ERR_TYPE, "weight must be a weight", "released");
  REFUSED(lowrank_weight_part(weight, "codes", &part), LOWRANK_ERR_TYPE, "weight must be a weight", "released");
  REFUSED(lowrank_memory("tpu", &after), LOWRANK_ERR_DEVICE, "one of cpu", "tpu");
  REFUSED(lowrank_set_threads(0), LOWRANK_ERR_VALUE, "threads must be from 1 to 256", "0");
  tensor_free(w), tensor_free(codes), tensor_free(absmax);
}

void run_refusals(void) {
  check_operands();
  check_memory();
  check_sizes();
  check_weights();
}
