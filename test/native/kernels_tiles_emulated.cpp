// Flags: those of kernels_avx512_bf16.cpp -DLOWRANK_EMULATE_TILES
// The kernels of the matrix unit with its products in vectors (amx_tile.h), so that they are checked on
// processors without one.
#define LOWRANK_ISA avx512_tiles_emulated
#define LOWRANK_ISA_NAME "avx512-amx, emulated"
#include "native/cpu/kernels/isa/body.h"
