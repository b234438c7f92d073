# The emulated CUDA driver, as shared libraries beside the addon. Each exports the driver's entry
# points and holds every kernel of cuda/:
#
#   lowrank-emulator.so        kernels compiled by the host compiler; in the default build
#   lowrank-emulator-check.so  the same, every memory access reported to the runtime; emulator_check
#   lowrank-emulator-ptx.so    kernels translated from nvcc's PTX; emulator_ptx, needs nvcc
#
# They are x86-64 only: fibers switch by hand-written assembly.
if(LOWRANK_SANITIZE)
  set(lowrank_emulator_default OFF)
else()
  set(lowrank_emulator_default ON)
endif()
option(LOWRANK_EMULATOR "build the emulated CUDA driver" ${lowrank_emulator_default})

if(LOWRANK_EMULATOR AND NOT arch STREQUAL "x64")
  message(STATUS "lowrank: the CUDA emulator is not built: it runs on x86-64 only")
elseif(LOWRANK_EMULATOR AND emulator_sources)
  # Contraction is off as in nvcc's build of the same kernels. v3 has F16C, for half.
  set(emulator_flags -march=x86-64-v3 -fno-strict-aliasing -ffp-contract=off ${lowrank_warnings})
  # What makes the compiler tell of each access, and tell of it whole and where it stands: the hooks
  # of ThreadSanitizer without its runtime (ours defines them), and nothing that splits, merges or
  # drops an access. Without the -fno-tree-* a 16-byte load becomes four of 4 and the counters lie.
  set(emulator_hooks -O2 -g1 -fsanitize=thread --param tsan-instrument-func-entry-exit=0
    --param tsan-distinguish-volatile=1 -fno-tree-sra -fno-ipa-sra -fno-tree-fre -fno-tree-pre
    -fno-tree-vectorize -fno-tree-slp-vectorize -fno-crossjumping -fno-tree-tail-merge)

  add_library(lowrank_emulator_runtime OBJECT ${emulator_sources})
  target_compile_definitions(lowrank_emulator_runtime PRIVATE LOWRANK_EMULATE)
  target_compile_options(lowrank_emulator_runtime PRIVATE ${emulator_flags})
  target_include_directories(lowrank_emulator_runtime PRIVATE ${CMAKE_CURRENT_SOURCE_DIR})

  # One object library of the kernels a way to compile them: source properties are a folder's, so
  # -x c++ stands with the target.
  function(lowrank_emulator_library target variant)
    cmake_parse_arguments(arg "" "" "SOURCES;OPTIONS" ${ARGN})
    add_library(${target} MODULE $<TARGET_OBJECTS:lowrank_emulator_runtime> ${arg_SOURCES})
    set_target_properties(${target} PROPERTIES PREFIX "" SUFFIX ".so" LINKER_LANGUAGE CXX
      OUTPUT_NAME lowrank-emulator${variant} LIBRARY_OUTPUT_DIRECTORY ${lowrank_output_dir})
    target_compile_definitions(${target} PRIVATE LOWRANK_EMULATE)
    target_compile_options(${target} PRIVATE ${emulator_flags} ${arg_OPTIONS})
    target_include_directories(${target} PRIVATE ${CMAKE_CURRENT_SOURCE_DIR})
    # -z now: no lazy binding on a fiber's small stack. nodelete: the library outlives whoever opened it, as libcuda does.
    target_link_options(${target} PRIVATE -Wl,-z,now -Wl,-z,nodelete -Wl,-Bsymbolic)
    target_link_libraries(${target} PRIVATE Threads::Threads ${CMAKE_DL_LIBS})
  endfunction()

  set_source_files_properties(${kernel_sources} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "-xc++")
  lowrank_emulator_library(lowrank_emulator "" SOURCES ${kernel_sources})
  lowrank_emulator_library(emulator_check "-check" SOURCES ${kernel_sources}
                           OPTIONS ${emulator_hooks})
  set_target_properties(emulator_check PROPERTIES EXCLUDE_FROM_ALL ON)
endif()
