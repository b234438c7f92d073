// Flags: native/sources.json, and -ffp-contract=off
#define LOWRANK_ISA avx2
#include "native/cpu/kernels/isa/model_body.h"
