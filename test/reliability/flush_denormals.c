/// LD_PRELOAD: what loading a library linked with -ffast-math does to a process.
#include <xmmintrin.h>

__attribute__((constructor)) static void FlushDenormals(void) { _mm_setcsr(_mm_getcsr() | 0x8040); }
