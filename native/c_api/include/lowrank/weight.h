/* Frozen base weights w [N, K]: dense, or quantised. A handle is counted, and read-only: any number
 * of threads and calls may share one. */
#ifndef LOWRANK_WEIGHT_H
#define LOWRANK_WEIGHT_H

#include "core.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct lowrank_weight lowrank_weight;

/* A dense weight in the caller's memory, which must stay as it is until `release` is called, once,
 * from any thread, when nothing uses the weight any more. `release` may be NULL. On failure it is
 * not called. */
LOWRANK_API int32_t lowrank_weight_wrap(const DLTensor* w, void (*release)(void* context),
                                        void* context, lowrank_weight** weight);

/* Flags of lowrank_quantize_args. */
enum {
  LOWRANK_DOUBLE_QUANT = 1, /* the scales in 8 bits too */
  LOWRANK_ROWWISE = 2       /* "int8" with one scale a row (LLM.int8); K has to be a power of two or
                               `blocksize` is a power of two that divides K */
};

/* Blockwise quantisation as bitsandbytes does it, with its bytes. */
typedef struct {
  size_t size;
  uint32_t device;
  uint32_t flags;
  void* stream;       /* NULL, or the CUDA stream on which w is ready */
  const DLTensor* w;  /* [N, K] */
  const char* format; /* "nf4", "fp4", "int8", ...: docs/formats.md */
  int64_t blocksize;  /* elements a scale: a power of two; 0: the format's own */
} lowrank_quantize_args;
LOWRANK_API int32_t lowrank_weight_quantize(const lowrank_quantize_args* args,
                                            lowrank_weight** weight);

/* Quantised parts that exist, for instance those of bitsandbytes. They are copied. The scales are
 * `absmax`, or with double quantisation the four parts after it. */
typedef struct {
  size_t size;
  uint32_t device; /* 0 */
  uint32_t flags;  /* LOWRANK_ROWWISE, or 0 */
  const char* format;
  int64_t rows;                    /* N */
  int64_t cols;                    /* K */
  int64_t blocksize;               /* 0: the format's own */
  int64_t nested_blocksize;        /* 0: 256 */
  const DLTensor* codes;           /* uint8: ceil(N · K / 2) for 4 bits, else N · K */
  const DLTensor* codebook;        /* float32 [16 or 256]; NULL: the format's own */
  const DLTensor* absmax;          /* float32 [blocks] */
  const DLTensor* absmax_8bit;     /* uint8 [blocks] */
  const DLTensor* absmax_codebook; /* float32 [256] */
  const DLTensor* nested_absmax;   /* float32 [ceil(blocks / nested_blocksize)] */
  const DLTensor* absmax_offset;   /* float32 [1] */
} lowrank_weight_parts;
LOWRANK_API int32_t lowrank_weight_from_parts(const lowrank_weight_parts* parts,
                                              lowrank_weight** weight);

/* One more reference, and one less. The memory goes with the last one, and not before a running
 * call that uses it has ended. */
LOWRANK_API int32_t lowrank_weight_retain(lowrank_weight* weight);
LOWRANK_API int32_t lowrank_weight_release(lowrank_weight* weight);

typedef struct {
  size_t size;
  int64_t rows;      /* N */
  int64_t cols;      /* K */
  int64_t bytes;     /* of all parts */
  int64_t blocksize; /* 0: dense */
  char format[16];   /* "nf4"; for a dense weight "f32", "bf16" or "f16" */
  DLDevice device;
} lowrank_weight_info;
LOWRANK_API int32_t lowrank_weight_describe(lowrank_weight* weight, lowrank_weight_info* info);

/* A part by its field name in lowrank_weight_parts, or "dense", read-only and without a copy. It
 * holds a reference to the weight until its `deleter` is called. */
LOWRANK_API int32_t lowrank_weight_part(lowrank_weight* weight, const char* name,
                                        DLManagedTensorVersioned** part);

/* y = dequant(w), rounded once to the dtype of y. */
typedef struct {
  size_t size;
  uint32_t device;
  uint32_t flags; /* 0 */
  void* stream;
  lowrank_weight* w; /* [N, K] */
  DLTensor* y;       /* [N, K]  out */
} lowrank_dequantize_args;
LOWRANK_API int32_t lowrank_dequantize(const lowrank_dequantize_args* args);

#ifdef __cplusplus
}
#endif
#endif
