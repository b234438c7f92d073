/* Errors, devices, threads, memory, and tensors that the library owns. */
#ifndef LOWRANK_CORE_H
#define LOWRANK_CORE_H

#include "dlpack.h"

#if defined(LOWRANK_BUILDS_LIBRARY)
#define LOWRANK_API __attribute__((visibility("default")))
#else
#define LOWRANK_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Of this header. A larger one has more functions, fields and codes; nothing is ever taken away. */
#define LOWRANK_ABI 1

/* Of the library that is loaded. */
LOWRANK_API int32_t lowrank_abi(void);
/* "0.1.0" */
LOWRANK_API const char* lowrank_version(void);

enum {
  LOWRANK_OK = 0,
  LOWRANK_ERR_TYPE = 1,       /* a NULL pointer, a released handle */
  LOWRANK_ERR_SHAPE = 2,      /* dimensions or strides do not fit */
  LOWRANK_ERR_DTYPE = 3,      /* an element type that the op does not take */
  LOWRANK_ERR_DEVICE = 4,     /* another device, or one that cannot compute here */
  LOWRANK_ERR_FORMAT = 5,     /* a format of quantised weights, or its parts */
  LOWRANK_ERR_VALUE = 6,      /* a number out of its range */
  LOWRANK_ERR_NON_FINITE = 7, /* a NaN or an infinity where none may be */
  LOWRANK_ERR_DISPOSED = 8,   /* memory is needed, and `data` is NULL */
  LOWRANK_ERR_ALIAS = 9,      /* an output overlaps another operand */
  LOWRANK_ERR_UNSUPPORTED = 10,
  LOWRANK_ERR_OOM = 11,
  LOWRANK_ERR_COMPUTE = 12, /* the device failed */
  LOWRANK_ERR_CANCELLED = 13,
  LOWRANK_ERR_ABI = 14,          /* a struct of a size that this library does not know */
  LOWRANK_ERR_MEMORY_BUDGET = 15 /* more than LOWRANK_MEMORY_LIMIT allows */
};

/* "ERR_SHAPE"; "ERR_UNKNOWN" for another number. */
LOWRANK_API const char* lowrank_code_name(int32_t code);

/* What the last call of this thread refused and why: "matmul: x must be of K = 64 (w's K), got
 * [3, 63]". Empty if it succeeded. The text lives until the thread's next call. */
LOWRANK_API const char* lowrank_last_error(void);

/* Field `device` of a call: what computes. */
enum {
  LOWRANK_DEVICE_OF_OPERANDS = 0, /* "cpu" for host memory, "cuda:i" for memory of GPU i */
  LOWRANK_DEVICE_REFERENCE = 1    /* plain loops in double over host memory, to compare with */
};

typedef struct {
  size_t size;
  char name[32];       /* "cpu" */
  int32_t available;   /* 1 or 0 */
  int32_t device_type; /* DLDeviceType of its memory */
  int32_t device_id;
  int32_t reserved;
  int64_t memory_bytes;
  char isa[32]; /* "avx512-amx"; empty for a GPU */
  char description[96];
  char reason[256]; /* why it is not available */
} lowrank_device_info;

/* How many devices there are, present or not. Looks for GPUs. */
LOWRANK_API int32_t lowrank_device_count(int32_t* count);
/* The device with this index, from 0 on. Set `info->size` first. */
LOWRANK_API int32_t lowrank_device_at(int32_t index, lowrank_device_info* info);

/* Threads of the device "cpu", 1 to 256. At first LOWRANK_NUM_THREADS, OMP_NUM_THREADS, or the
 * cores that the process may use. Results never depend on it. */
LOWRANK_API int32_t lowrank_set_threads(int32_t threads);
LOWRANK_API int32_t lowrank_get_threads(void);

typedef struct {
  size_t size;
  int64_t live_bytes; /* of weights and tensors that the library owns */
  int64_t peak_bytes;
  int64_t live_blocks;
  int64_t live_weights; /* handles, of all devices */
} lowrank_memory_info;

/* `device`: its name, as in lowrank_device_info. Set `info->size` first. */
LOWRANK_API int32_t lowrank_memory(const char* device, lowrank_memory_info* info);

/* A row-major tensor in 64-byte aligned memory of the library, its contents undefined. Only
 * `deleter` frees it. `dtype`: float32, bfloat16, float16, or uint8. */
LOWRANK_API int32_t lowrank_tensor_new(DLDevice device, DLDataType dtype, int32_t ndim,
                                       const int64_t* shape, DLManagedTensorVersioned** tensor);

/* The same tensor in DLPack's earlier form, which owns the given one from then on. */
LOWRANK_API int32_t lowrank_to_dlpack_legacy(DLManagedTensorVersioned* tensor,
                                             DLManagedTensor** legacy);

#ifdef __cplusplus
}
#endif
#endif
