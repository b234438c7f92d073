// Flags: those of kernels_avx512_bf16.cpp -DLOWRANK_EMULATE_TILES
// The same for the ops of a model.
#define LOWRANK_ISA avx512_tiles_emulated
#define LOWRANK_MODEL_BASE avx512_bf16
#include "native/cpu/kernels/isa/model_body.h"
