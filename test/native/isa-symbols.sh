#!/bin/sh
# Object files of the instruction-set units must export no weak symbol outside their own namespace:
# the linker could take that copy for code that runs on every processor.
#
#   isa-symbols.sh kernels_avx2.o kernels_avx512.o ...
status=0
for object in "$@"; do
  weak=$(nm -C "$object" | grep -E ' [VWu] ' |
    grep -vE 'lowrank::cpu::(portable|avx2|avx512|avx512_vnni|avx512_bf16|avx512_amx|neon)::')
  if [ -n "$weak" ]; then
    printf '%s exports weak symbols:\n%s\n' "$object" "$weak"
    status=1
  fi
done
exit $status
