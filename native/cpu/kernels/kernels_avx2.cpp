// Flags: -O3 -ffp-contract=off -mavx2 -mfma -mf16c
#define LOWRANK_ISA avx2
#define LOWRANK_ISA_NAME "avx2"
#include "native/cpu/kernels/body.h"
