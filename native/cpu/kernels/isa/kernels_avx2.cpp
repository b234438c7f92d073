// Flags: native/sources.json, and -ffp-contract=off
#define LOWRANK_ISA avx2
#define LOWRANK_ISA_NAME "avx2"
#include "native/cpu/kernels/isa/body.h"
