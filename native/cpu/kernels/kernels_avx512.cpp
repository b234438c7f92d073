// Flags: -O2 -ffp-contract=off -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx2 -mfma -mf16c
#define LOWRANK_ISA avx512
#define LOWRANK_ISA_NAME "avx512"
#include "native/cpu/kernels/body.h"
