// Flags: native/sources.json, and -ffp-contract=off; aarch64 has NEON in its base set
#define LOWRANK_ISA neon
#define LOWRANK_ISA_NAME "neon"
#include "native/cpu/kernels/isa/body.h"
