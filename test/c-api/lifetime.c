/* What outlives a call: handles, threads, forks, memory, and the mode of the processor. */
#define _GNU_SOURCE
#include "check.h"

#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

enum { M = 4, N = 96, K = 128, R = 4, THREADS = 4, ROUNDS = 200, CALLS = 10000 };

typedef struct {
  lowrank_weight *weight;
  const float *expected;
  int wrong;
} Shared;

static lowrank_weight *the_weight(void) {
  Tensor *w = tensor_new(F32, N, K, 2, 1);
  lowrank_weight *weight = NULL;
  lowrank_quantize_args q = {.size = sizeof q, .w = &w->t, .format = "nf4"};
  OK(lowrank_weight_quantize(&q, &weight));
  tensor_free(w);
  return weight;
}

static int32_t product_of(const Tensor *x, lowrank_weight *weight, float *y) {
  int64_t shape[2] = {M, N};
  DLTensor out = x->t;
  out.data = y;
  out.shape = shape;
  lowrank_matmul_args args = {.size = sizeof args, .x = &x->t, .w = weight, .y = &out};
  return lowrank_matmul(&args);
}

static int32_t product(lowrank_weight *weight, float *y) {
  Tensor *x = tensor_new(F32, M, K, 1, 1);
  const int32_t code = product_of(x, weight, y);
  tensor_free(x);
  return code;
}

/* Threads with one weight, and with errors of their own. */
static void *work(void *given) {
  Shared *shared = given;
  float y[M * N];
  for (int round = 0; round < ROUNDS; round++) {
    memset(y, 0, sizeof y);
    if (product(shared->weight, y) != LOWRANK_OK || memcmp(y, shared->expected, sizeof y) != 0) shared->wrong++;
    if (lowrank_last_error()[0] != '\0') shared->wrong++;
    if (lowrank_weight_retain(shared->weight) != LOWRANK_OK) shared->wrong++;
    if (lowrank_set_threads(-round) != LOWRANK_ERR_VALUE) shared->wrong++;
    if (strstr(lowrank_last_error(), "threads must be") == NULL) shared->wrong++;
    if (lowrank_weight_release(shared->weight) != LOWRANK_OK) shared->wrong++;
  }
  return NULL;
}

static void check_threads(void) {
  float expected[M * N];
  pthread_t threads[THREADS];
  Shared shared[THREADS];
  lowrank_weight *weight = the_weight();
  OK(product(weight, expected));
  for (int i = 0; i < THREADS; i++) {
    shared[i] = (Shared){weight, expected, 0};
    pthread_create(&threads[i], NULL, work, &shared[i]);
  }
  for (int i = 0; i < THREADS; i++) {
    pthread_join(threads[i], NULL);
    EXPECT(shared[i].wrong == 0, "thread %d: %d of %d", i, shared[i].wrong, ROUNDS);
  }
  OK(lowrank_weight_release(weight));
}

/* Is nearly always inside a call, and so holds what calls lock. */
static void *keep_busy(void *given) {
  enum { ROWS = 512 };
  Shared *shared = given;
  Tensor *x = tensor_new(F32, ROWS, K, 1, 1), *y = tensor_new(F32, ROWS, N, 0, 0);
  lowrank_matmul_args args = {.size = sizeof args, .x = &x->t, .w = shared->weight, .y = &y->t};
  while (!__atomic_load_n(&shared->wrong, __ATOMIC_ACQUIRE)) lowrank_matmul(&args);
  tensor_free(x), tensor_free(y);
  return NULL;
}

/* Children work, with the weights and with new ones, also if a thread of the parent was in a call. */
static void check_fork(void) {
  float expected[M * N], y[M * N];
  lowrank_weight *weight = the_weight();
  Shared busy = {weight, NULL, 0};
  pthread_t thread;
  OK(product(weight, expected));
  pthread_create(&thread, NULL, keep_busy, &busy);
  for (int child = 0; child < 20 && failures == 0; child++) {
    fflush(stdout);
    const pid_t pid = fork();
    if (pid == 0) {
      alarm(20);
      failures = 0;
      OK(product(weight, y));
      EXPECT(memcmp(y, expected, sizeof y) == 0, "other bits in a child");
      lowrank_weight *own = the_weight();
      memset(y, 0, sizeof y);
      OK(product(own, y));
      EXPECT(memcmp(y, expected, sizeof y) == 0, "other bits of a child's weight");
      OK(lowrank_weight_release(own));
      OK(lowrank_weight_release(weight));
      lowrank_device_info info = {.size = sizeof info};
      OK(lowrank_device_at(0, &info));
      EXPECT(info.available == 1, "%s: %s", info.name, info.reason);
      fflush(stdout);
      _exit(failures == 0 ? 0 : 1);
    }
    int ended = 0;
    waitpid(pid, &ended, 0);
    EXPECT(WIFEXITED(ended) && WEXITSTATUS(ended) == 0, "child %d ended with %d", child, ended);
  }
  __atomic_store_n(&busy.wrong, 1, __ATOMIC_RELEASE);
  pthread_join(thread, NULL);
  OK(product(weight, y));
  EXPECT(memcmp(y, expected, sizeof y) == 0, "other bits in the parent");
  OK(lowrank_weight_release(weight));
}

static long resident(void) {
  long pages = 0, all = 0;
  FILE *file = fopen("/proc/self/statm", "r");
  if (file == NULL || fscanf(file, "%ld %ld", &all, &pages) != 2) pages = 0;
  if (file != NULL) fclose(file);
  return pages * sysconf(_SC_PAGESIZE);
}

/* One of everything, right and wrong. */
static void use_all(void) {
  float y[M * N];
  const int64_t shape[2] = {M, N};
  DLManagedTensorVersioned *tensor = NULL, *codes = NULL;
  DLManagedTensor *legacy = NULL;
  lowrank_weight *weight = the_weight();
  lowrank_matmul_args wrong = {.size = sizeof wrong, .w = weight};
  OK(product(weight, y));
  OK(lowrank_weight_part(weight, "codes", &codes));
  OK(lowrank_weight_release(weight));
  OK(lowrank_to_dlpack_legacy(codes, &legacy));
  legacy->deleter(legacy);
  OK(lowrank_tensor_new((DLDevice){kDLCPU, 0}, (DLDataType){kDLFloat, 32, 1}, 2, shape, &tensor));
  tensor->deleter(tensor);
  EXPECT(lowrank_matmul(&wrong) == LOWRANK_ERR_TYPE, "no x");
}

static void check_leaks(void) {
  lowrank_memory_info before = {.size = sizeof before}, after = before;
  for (int i = 0; i < 200; i++) use_all();
  OK(lowrank_memory("cpu", &before));
  const long bytes = resident();
  for (int i = 0; i < CALLS; i++) use_all();
  const long more = resident() - bytes;
  OK(lowrank_memory("cpu", &after));
  EXPECT(after.live_bytes == before.live_bytes && after.live_blocks == before.live_blocks, "%lld bytes, %lld blocks",
         (long long)after.live_bytes, (long long)after.live_blocks);
  EXPECT(after.live_weights == before.live_weights, "%lld weights", (long long)after.live_weights);
  /* A leaked struct of 64 bytes a call would be 640 kB; a sanitizer keeps freed memory. */
  EXPECT(more < 400 * 1024 || getenv("LOWRANK_SANITIZED") != NULL, "%ld bytes more after %d calls", more, CALLS);
}

static void count_release(void *context) { ++*(int *)context; }

static void check_release(void) {
  Tensor *w = tensor_new(F32, N, K, 3, 1);
  lowrank_weight *weight = NULL;
  DLManagedTensorVersioned *dense = NULL;
  int released = 0;
  w->t.dtype.bits = 64;
  REFUSED(lowrank_weight_wrap(&w->t, count_release, &released, &weight), LOWRANK_ERR_DTYPE, "w must be", "float64");
  w->t.dtype.bits = 32;
  EXPECT(released == 0 && weight == NULL, "a refused weight is not released");
  OK(lowrank_weight_wrap(&w->t, count_release, &released, &weight));
  OK(lowrank_weight_part(weight, "dense", &dense));
  EXPECT(dense->dl_tensor.data == w->memory, "no copy");
  OK(lowrank_weight_release(weight));
  EXPECT(released == 0, "a part holds the memory");
  dense->deleter(dense);
  EXPECT(released == 1, "released %d times", released);
  tensor_free(w);
}

/* Rounding and denormals of the calling thread neither reach the kernels nor change. */
static void check_float_mode(void) {
#if defined(__x86_64__)
  float expected[M * N], y[M * N];
  Tensor *x = tensor_new(F32, M, K, 1, 1);
  lowrank_weight *weight = the_weight();
  const unsigned before = _mm_getcsr(), odd = before | 0x8040 | 0x6000; /* flush to zero, truncate */
  const int32_t threads = lowrank_get_threads();
  OK(lowrank_set_threads(1)); /* this thread computes it all */
  OK(product_of(x, weight, expected));
  _mm_setcsr(odd);
  const int32_t code = product_of(x, weight, y);
  const unsigned after = _mm_getcsr();
  _mm_setcsr(before);
  EXPECT(code == LOWRANK_OK && (after & 0xffc0) == (odd & 0xffc0), "mode %x, was %x", after, odd);
  EXPECT(memcmp(y, expected, sizeof y) == 0, "other bits in another mode");
  OK(lowrank_set_threads(threads));
  OK(lowrank_weight_release(weight));
  tensor_free(x);
#endif
}

void run_lifetime(void) {
  check_release();
  check_threads();
  check_fork();
  check_leaks();
  check_float_mode();
}
