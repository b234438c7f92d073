// Flags: native/sources.json, and -ffp-contract=off
#define LOWRANK_ISA portable
#define LOWRANK_ISA_NAME "portable"
#include "native/cpu/kernels/isa/body.h"
