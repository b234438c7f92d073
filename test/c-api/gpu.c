/* gpu: products and an adapter in the memory of a GPU, on the library's stream and on one of the caller,
 * against loops in double. Copies go through the driver, as a caller's would. */
#include "check.h"

#include <dlfcn.h>

enum { M = 24, N = 96, K = 128, R = 8 };

typedef int (*Init)(unsigned);
typedef int (*GetDevice)(int *, int);
typedef int (*RetainContext)(void **, int);
typedef int (*SetContext)(void *);
typedef int (*CopyIn)(unsigned long long, const void *, size_t);
typedef int (*CopyOut)(void *, unsigned long long, size_t);
typedef int (*NewStream)(void **, unsigned);
typedef int (*WaitStream)(void *);

static CopyIn copy_in;
static CopyOut copy_out;
static NewStream new_stream;
static WaitStream wait_stream;

/* ISO C has no conversion of an object pointer to one of a function. */
static void find(void *driver, const char *name, void *function) {
  void *found = dlsym(driver, name);
  EXPECT(found != NULL, "no %s", name);
  memcpy(function, &found, sizeof found);
}

static void open_driver(void) {
  void *driver = dlopen("libcuda.so.1", RTLD_NOW), *context = NULL;
  Init init;
  GetDevice get_device;
  RetainContext retain;
  SetContext set;
  int device = 0;
  if (driver == NULL) {
    printf("no driver: %s\n", dlerror());
    exit(1);
  }
  find(driver, "cuInit", &init), find(driver, "cuDeviceGet", &get_device);
  find(driver, "cuDevicePrimaryCtxRetain", &retain), find(driver, "cuCtxSetCurrent", &set);
  find(driver, "cuMemcpyHtoD_v2", &copy_in), find(driver, "cuMemcpyDtoH_v2", &copy_out);
  find(driver, "cuStreamCreate", &new_stream), find(driver, "cuStreamSynchronize", &wait_stream);
  EXPECT(init(0) == 0 && get_device(&device, 0) == 0 && retain(&context, device) == 0 && set(context) == 0, "a context");
}

/* A tensor on the GPU with the contents of one on the host. */
static DLManagedTensorVersioned *on_gpu(const Tensor *host) {
  DLManagedTensorVersioned *tensor = NULL;
  const DLDevice gpu = {kDLCUDA, 0};
  OK(lowrank_tensor_new(gpu, host->t.dtype, 2, host->shape, &tensor));
  if (tensor == NULL) exit(1);
  const unsigned long long address = (unsigned long long)(uintptr_t)tensor->dl_tensor.data;
  EXPECT(copy_in(address, host->memory, (size_t)host->count * host->t.dtype.bits / 8) == 0, "a copy");
  return tensor;
}

static void back(const DLManagedTensorVersioned *from, Tensor *host) {
  const unsigned long long address = (unsigned long long)(uintptr_t)from->dl_tensor.data;
  EXPECT(copy_out(host->memory, address, (size_t)host->count * host->t.dtype.bits / 8) == 0, "a copy");
  tensor_load(host);
}

static void check_layer(void *stream, const char *format) {
  Tensor *x = tensor_new(BF16, M, K, 1, 1), *w = tensor_new(BF16, N, K, 2, 1), *a = tensor_new(BF16, R, K, 3, 1);
  Tensor *b = tensor_new(BF16, N, R, 4, 1), *h = tensor_new(F32, M, R, 0, 0), *y = tensor_new(BF16, M, N, 0, 0);
  Tensor *dense = tensor_new(F32, N, K, 0, 0);
  Tensor *host[] = {x, w, a, b, h, y, dense};
  DLManagedTensorVersioned *gpu[7];
  lowrank_weight *weight = NULL;
  for (int i = 0; i < 7; i++) gpu[i] = on_gpu(host[i]);
  if (format == NULL) {
    OK(lowrank_weight_wrap(&gpu[1]->dl_tensor, NULL, NULL, &weight));
    memcpy(dense->values, w->values, N * K * sizeof(double));
  } else {
    lowrank_quantize_args q = {.size = sizeof q, .w = &gpu[1]->dl_tensor, .format = format};
    OK(lowrank_weight_quantize(&q, &weight));
    lowrank_dequantize_args d = {.size = sizeof d, .w = weight, .y = &gpu[6]->dl_tensor};
    OK(lowrank_dequantize(&d));
    back(gpu[6], dense);
  }
  lowrank_lora_forward_args f = {.size = sizeof f, .stream = stream, .x = &gpu[0]->dl_tensor, .w = weight};
  f.lora_a = &gpu[2]->dl_tensor, f.lora_b = &gpu[3]->dl_tensor, f.scaling = 2, f.h = &gpu[4]->dl_tensor, f.y = &gpu[5]->dl_tensor;
  OK(lowrank_lora_forward(&f));
  if (stream != NULL) EXPECT(wait_stream(stream) == 0, "the stream");
  back(gpu[5], y);
  for (int64_t m = 0; m < M; m++) {
    for (int64_t n = 0; n < N; n++) {
      double exact = 0, terms = 0;
      for (int64_t k = 0; k < K; k++) {
        exact += at(x, m, k) * at(dense, n, k), terms += fabs(at(x, m, k) * at(dense, n, k));
        for (int64_t r = 0; r < R; r++) {
          exact += 2 * at(x, m, k) * at(a, r, k) * at(b, n, r), terms += 2 * fabs(at(x, m, k) * at(a, r, k) * at(b, n, r));
        }
      }
      /* 16 + 2.5 · K + 10 · r units of the accumulation, and the rounding of decoded values to bf16 */
      const double bound = (16 + 2.5 * K + 10 * R) * ldexp(1, -24) * terms + (format != NULL ? ldexp(1, -8) * terms : 0);
      EXPECT(fabs(at(y, m, n) - exact) <= bound + ldexp(1, -8) * fabs(exact), "y %g, exact %g", at(y, m, n), exact);
    }
  }
  lowrank_lora_forward_args mixed = f;
  mixed.x = &x->t, mixed.stream = NULL;
  REFUSED(lowrank_lora_forward(&mixed), LOWRANK_ERR_DEVICE, "w must be on the host, where x is", "cuda:0");
  mixed = f;
  mixed.device = LOWRANK_DEVICE_REFERENCE;
  REFUSED(lowrank_lora_forward(&mixed), LOWRANK_ERR_DEVICE, "on the host (for the reference device)", "cuda:0");
  OK(lowrank_weight_release(weight));
  for (int i = 0; i < 7; i++) gpu[i]->deleter(gpu[i]), tensor_free(host[i]);
}

/* Each row has one of two adapters or none: rows lie on the host, the factors on the GPU. */
static void check_grouped(void *stream) {
  Tensor *x = tensor_new(BF16, M, K, 1, 1), *w = tensor_new(BF16, N, K, 2, 1), *y = tensor_new(BF16, M, N, 0, 0);
  Tensor *a[2] = {tensor_new(BF16, R, K, 3, 1), tensor_new(BF16, 2 * R, K, 4, 1)};
  Tensor *b[2] = {tensor_new(BF16, N, R, 5, 1), tensor_new(BF16, N, 2 * R, 6, 1)};
  int32_t rows[M];
  int64_t count = M, h_count = 0;
  for (int m = 0; m < M; m++) rows[m] = m % 5 == 4 ? -1 : m * m % 3 % 2, h_count += rows[m] < 0 ? 0 : R * (rows[m] + 1);
  DLTensor of_rows = index_tensor(rows, 1, &count);
  Tensor *h = tensor_new(F32, 1, h_count, 0, 0);
  Tensor *host[] = {x, w, y, a[0], b[0], a[1], b[1], h};
  DLManagedTensorVersioned *gpu[8];
  lowrank_batch_adapter parts[2];
  const lowrank_batch_adapter *pointers[] = {&parts[0], &parts[1]};
  lowrank_weight *weight = NULL;
  for (int i = 0; i < 8; i++) gpu[i] = on_gpu(host[i]);
  OK(lowrank_weight_wrap(&gpu[1]->dl_tensor, NULL, NULL, &weight));
  memset(parts, 0, sizeof parts);
  for (int e = 0; e < 2; e++) {
    parts[e].size = sizeof parts[e], parts[e].scaling = (float)(e + 1);
    parts[e].lora_a = &gpu[3 + 2 * e]->dl_tensor, parts[e].lora_b = &gpu[4 + 2 * e]->dl_tensor;
  }
  lowrank_grouped_forward_args f = {.size = sizeof f, .stream = stream, .x = &gpu[0]->dl_tensor, .w = weight};
  f.adapters = pointers, f.adapter_count = 2, f.rows = &of_rows, f.h = &gpu[7]->dl_tensor, f.y = &gpu[2]->dl_tensor;
  OK(lowrank_grouped_forward(&f));
  memset(parts, 0, sizeof parts), memset(rows, 0x7f, sizeof rows); /* read by now, whatever the stream still does */
  if (stream != NULL) EXPECT(wait_stream(stream) == 0, "the stream");
  back(gpu[2], y);
  for (int64_t m = 0; m < M; m++) {
    const int e = m % 5 == 4 ? -1 : (int)(m * m % 3 % 2);
    const int r_count = e < 0 ? 0 : R * (e + 1);
    for (int64_t n = 0; n < N; n++) {
      double exact = 0, terms = 0;
      for (int64_t k = 0; k < K; k++) {
        exact += at(x, m, k) * at(w, n, k), terms += fabs(at(x, m, k) * at(w, n, k));
        for (int64_t r = 0; r < r_count; r++) {
          const double product = (e + 1) * at(x, m, k) * at(a[e], r, k) * at(b[e], n, r);
          exact += product, terms += fabs(product);
        }
      }
      const double bound = (16 + 2.5 * K + 10 * r_count) * ldexp(1, -24) * terms;
      EXPECT(fabs(at(y, m, n) - exact) <= bound + ldexp(1, -8) * fabs(exact), "y %g, exact %g", at(y, m, n), exact);
    }
  }
  OK(lowrank_weight_release(weight));
  for (int i = 0; i < 8; i++) gpu[i]->deleter(gpu[i]), tensor_free(host[i]);
}

void run_gpu(void) {
  void *stream = NULL;
  lowrank_device_info info = {.size = sizeof info};
  int32_t count = 0, found = -1;
  OK(lowrank_device_count(&count));
  for (int32_t i = 0; i < count; i++) {
    OK(lowrank_device_at(i, &info));
    if (strcmp(info.name, "cuda") == 0) found = i;
    if (found == i) break;
  }
  if (found < 0 || !info.available) {
    printf("not run: %s\n", info.reason);
    return;
  }
  open_driver();
  EXPECT(new_stream(&stream, 1) == 0, "a stream");
  check_layer(NULL, NULL);
  check_layer(NULL, "nf4");
  check_layer(stream, NULL);
  check_layer(stream, "nf4");
  check_grouped(NULL);
  check_grouped(stream);
  lowrank_memory_info memory = {.size = sizeof memory};
  OK(lowrank_memory("cuda", &memory));
  EXPECT(memory.live_bytes == 0 && memory.live_weights == 0, "%lld bytes", (long long)memory.live_bytes);
}
