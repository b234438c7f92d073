// Flags: native/sources.json, and -ffp-contract=off
// -mavx512bf16 -mavx512vbmi -mavx512vnni
#define LOWRANK_ISA avx512_bf16
#define LOWRANK_ISA_BASE avx512_vnni
#define LOWRANK_ISA_NAME "avx512-bf16"
#include "native/cpu/kernels/body.h"
