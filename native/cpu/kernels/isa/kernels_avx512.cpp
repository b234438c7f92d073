// Flags: native/sources.json, and -ffp-contract=off
#define LOWRANK_ISA avx512
#define LOWRANK_ISA_NAME "avx512"
#include "native/cpu/kernels/isa/body.h"
