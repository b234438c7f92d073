// Flags: native/sources.json, and -ffp-contract=off
#define LOWRANK_ISA neon
#include "native/cpu/kernels/isa/model_body.h"
