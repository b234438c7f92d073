// Flags: native/sources.json, and -ffp-contract=off
#define LOWRANK_ISA avx512_amx
#define LOWRANK_ISA_BASE avx512
#define LOWRANK_ISA_NAME "avx512-amx"
#include "native/cpu/kernels/isa/body.h"
