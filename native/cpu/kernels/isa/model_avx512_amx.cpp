// Flags: native/sources.json, and -ffp-contract=off
#define LOWRANK_ISA avx512_amx
#define LOWRANK_ISA_BASE avx512
#define LOWRANK_MODEL_BASE avx512_bf16
#include "native/cpu/kernels/isa/model_body.h"
