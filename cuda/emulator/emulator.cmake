# The emulated CUDA driver, as shared libraries beside the addon. Each exports the driver's entry
# points and holds every kernel of cuda/:
#
#   lowrank-emulator.so        kernels compiled by the host compiler; in the default build
#   lowrank-emulator-check.so  the same, every memory access reported to the runtime; emulator_check
#   lowrank-emulator-ptx.so    kernels translated from nvcc's PTX; emulator_ptx, needs nvcc
#
# They are x86-64 only: fibers switch by hand-written assembly.
option(LOWRANK_EMULATOR "build the emulated CUDA driver" ${lowrank_unless_sanitized})

if(LOWRANK_EMULATOR AND NOT arch STREQUAL "x64")
  message(STATUS "lowrank: the CUDA emulator is not built: it runs on x86-64 only")
elseif(LOWRANK_EMULATOR AND emulator_sources)
  # Contraction is off as in nvcc's build of the same kernels. v3 has F16C, for half.
  set(emulator_flags -march=x86-64-v3 -fno-strict-aliasing -ffp-contract=off ${lowrank_warnings})
  # What makes the compiler tell of each access, and tell of it whole and where it stands: the hooks
  # of ThreadSanitizer without its runtime (ours defines them), and nothing that splits, merges or
  # drops an access. Without the -fno-tree-* a 16-byte load becomes four of 4 and the counters lie.
  set(emulator_hooks -O2 -g1 -fsanitize=thread --param=tsan-instrument-func-entry-exit=0
    --param=tsan-distinguish-volatile=1 -fno-tree-sra -fno-ipa-sra -fno-tree-fre -fno-tree-pre
    -fno-tree-vectorize -fno-tree-slp-vectorize -fno-crossjumping -fno-tree-tail-merge)

  function(lowrank_emulator_compile target)
    target_compile_definitions(${target} PRIVATE LOWRANK_EMULATE)
    target_compile_options(${target} PRIVATE ${emulator_flags} ${ARGN})
    target_include_directories(${target} PRIVATE ${CMAKE_CURRENT_SOURCE_DIR})
  endfunction()
  add_library(lowrank_emulator_runtime OBJECT ${emulator_sources})
  lowrank_emulator_compile(lowrank_emulator_runtime)

  function(lowrank_emulator_library target variant)
    cmake_parse_arguments(arg "" "" "SOURCES;OPTIONS" ${ARGN})
    add_library(${target} MODULE $<TARGET_OBJECTS:lowrank_emulator_runtime> ${arg_SOURCES})
    set_target_properties(${target} PROPERTIES PREFIX "" SUFFIX ".so" LINKER_LANGUAGE CXX
      OUTPUT_NAME lowrank-emulator${variant} LIBRARY_OUTPUT_DIRECTORY ${lowrank_output_dir})
    # #pragma unroll is nvcc's. -Og: with -O1 the kernels take 1.8 times as long to compile, and tests
    # with them a twentieth less, being mostly calls of the runtime.
    lowrank_emulator_compile(${target} -Og -Wno-unknown-pragmas ${arg_OPTIONS})
    # -z now: no lazy binding on a fiber's small stack. nodelete: the library outlives whoever opened
    # it, as libcuda does.
    target_link_options(${target} PRIVATE -Wl,-z,now -Wl,-z,nodelete -Wl,-Bsymbolic)
    target_link_libraries(${target} PRIVATE Threads::Threads ${CMAKE_DL_LIBS})
  endfunction()

  set_source_files_properties(${kernel_sources} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "-xc++")
  lowrank_emulator_library(lowrank_emulator "" SOURCES ${kernel_sources})
  lowrank_emulator_library(emulator_check "-check" SOURCES ${kernel_sources}
                           OPTIONS ${emulator_hooks})
  set_target_properties(emulator_check PROPERTIES EXCLUDE_FROM_ALL ON)
  add_custom_target(emulators DEPENDS lowrank_emulator emulator_check)

  # --- PTX mode: what nvcc made of the kernels, as C++. A file for one architecture is taken as that,
  # all others as LOWRANK_PTX_ARCH; a fat binary's, where one is made of it.
  set(LOWRANK_PTX_ARCH 80 CACHE STRING "the architecture whose PTX the emulator translates")
  set(ptx_parts 4) # C++ files that the kernels of one source are spread over: g++ runs in parallel
  file(GLOB ptx_translator CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/cuda/emulator/ptx/*.mjs)
  function(lowrank_translate_ptx ptx count out)
    string(REGEX REPLACE "\\.ptx$" "" stem ${ptx})
    set(parts)
    math(EXPR last_part "${count} - 1")
    foreach(part RANGE ${last_part})
      list(APPEND parts ${stem}.${part}.cpp)
    endforeach()
    add_custom_command(
      OUTPUT ${parts}
      COMMAND node ${CMAKE_CURRENT_SOURCE_DIR}/cuda/emulator/ptx/translate.mjs
              --root ${CMAKE_CURRENT_SOURCE_DIR} ${ptx} ${parts}
      DEPENDS ${ptx} ${ptx_translator}
      COMMENT "Translating ${ptx}" VERBATIM)
    # -Og: the rest buys little on code that is mostly calls, and costs twice to four times the time.
    set_source_files_properties(${parts} PROPERTIES COMPILE_OPTIONS "-Og;-g1;-w")
    set(${out} ${parts} PARENT_SCOPE)
  endfunction()
  function(lowrank_translate_kernel source out)
    get_filename_component(name ${source} NAME_WE)
    set(ptx_arch ${LOWRANK_PTX_ARCH})
    if(name MATCHES "_sm(90|[0-9]+a)$")
      set(ptx_arch ${CMAKE_MATCH_1})
    endif()
    set(dir ${CMAKE_CURRENT_BINARY_DIR}/ptx)
    file(MAKE_DIRECTORY ${dir})
    set(ptx ${dir}/${name}.ptx)
    get_property(kept GLOBAL PROPERTY lowrank_ptx_${name}_${ptx_arch})
    if(kept)
      add_custom_command(OUTPUT ${ptx} COMMAND ${CMAKE_COMMAND} -E copy ${kept} ${ptx}
                         DEPENDS ${kept} VERBATIM)
      lowrank_translate_ptx(${ptx} ${ptx_parts} parts)
      set(${out} ${parts} PARENT_SCOPE)
      return()
    endif()
    add_custom_command(
      OUTPUT ${ptx}
      COMMAND ${LOWRANK_NVCC} ${lowrank_nvcc_front_end} -I ${CMAKE_CURRENT_SOURCE_DIR}
              -arch=compute_${ptx_arch} -MD -MT ${ptx} -MF ${ptx}.d
              -ptx ${CMAKE_CURRENT_SOURCE_DIR}/${source} -o ${ptx}
      DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/${source}
      DEPFILE ${ptx}.d
      COMMENT "nvcc -ptx ${source} (compute_${ptx_arch})" VERBATIM)
    lowrank_translate_ptx(${ptx} ${ptx_parts} parts)
    set(${out} ${parts} PARENT_SCOPE)
  endfunction()

  if(lowrank_build_kernels)
    set(translated)
    foreach(source ${kernel_sources})
      lowrank_translate_kernel(${source} parts)
      list(APPEND translated ${parts})
    endforeach()
    lowrank_emulator_library(emulator_ptx "-ptx" SOURCES ${translated} ${emulator_ptx_sources})
    set_target_properties(emulator_ptx PROPERTIES EXCLUDE_FROM_ALL ON)
    add_dependencies(emulators emulator_ptx)
  endif()

  # --- A kernel of one's own with the same checks and counters, and the program that launches it:
  # `lowrank emulate --kernel` names the file. One that has gone away is no error of other targets.
  set(LOWRANK_OWN_KERNEL "" CACHE FILEPATH "a kernel file to be made into lowrank-emulator-own.so")
  if(LOWRANK_OWN_KERNEL AND EXISTS ${LOWRANK_OWN_KERNEL})
    set_source_files_properties(${LOWRANK_OWN_KERNEL} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "-xc++")
    lowrank_emulator_library(emulator_own "-own" SOURCES ${LOWRANK_OWN_KERNEL}
                             OPTIONS ${emulator_hooks})
    set_target_properties(emulator_own PROPERTIES EXCLUDE_FROM_ALL ON)
  endif()
  # --- Copies of the kernels with faults that are switched on one at a time: the mutation proof,
  # test/emulator/mutate.mjs, and planted.mjs write them and name the folder. Of the second, kernels
  # that are not among them are those of the check library: the later of a name counts.
  set(LOWRANK_MUTANTS "" CACHE PATH "a folder of kernels made into lowrank-emulator-mutants.so")
  option(LOWRANK_MUTANTS_WHOLE "the check library's kernels beside them" OFF)
  if(LOWRANK_MUTANTS AND EXISTS ${LOWRANK_MUTANTS}/mutant.cpp)
    file(GLOB_RECURSE mutant_kernels CONFIGURE_DEPENDS ${LOWRANK_MUTANTS}/cuda/*.cu)
    set_source_files_properties(${mutant_kernels} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "-xc++")
    set_source_files_properties(${LOWRANK_MUTANTS}/mutant.cpp PROPERTIES
                                COMPILE_OPTIONS "-fno-sanitize=thread")
    lowrank_emulator_library(emulator_mutants "-mutants"
      SOURCES $<$<BOOL:${LOWRANK_MUTANTS_WHOLE}>:$<TARGET_OBJECTS:emulator_check>> ${mutant_kernels} ${LOWRANK_MUTANTS}/mutant.cpp
      OPTIONS ${emulator_hooks} -include ${LOWRANK_MUTANTS}/mutant.h -w)
    target_include_directories(emulator_mutants BEFORE PRIVATE ${LOWRANK_MUTANTS})
    set_target_properties(emulator_mutants PROPERTIES EXCLUDE_FROM_ALL ON)
  endif()
  add_executable(emulator_run EXCLUDE_FROM_ALL cuda/emulator/driver/run_kernel.cpp)
  set_target_properties(emulator_run PROPERTIES OUTPUT_NAME lowrank-emulator-run
                        RUNTIME_OUTPUT_DIRECTORY ${lowrank_output_dir})
  target_compile_options(emulator_run PRIVATE ${lowrank_warnings})
  target_include_directories(emulator_run PRIVATE ${CMAKE_CURRENT_SOURCE_DIR})
  target_link_libraries(emulator_run PRIVATE ${CMAKE_DL_LIBS})

  # --- The emulated driver's own check: a program over libraries that hold the test's kernels (the
  # published package has no tests).
  if(EXISTS ${CMAKE_CURRENT_SOURCE_DIR}/test/native/emulated_driver_check.cpp)
    set(driver_kernels test/native/emulated_driver_kernels.cu)
    set_source_files_properties(${driver_kernels} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "-xc++")
    lowrank_emulator_library(emulated_driver_source "-driver-source" SOURCES ${driver_kernels}
                             OPTIONS -g1)
    lowrank_emulator_library(emulated_driver_checked "-driver-check" SOURCES ${driver_kernels}
                             OPTIONS ${emulator_hooks})
    add_executable(emulated_driver_check EXCLUDE_FROM_ALL
      test/native/emulated_driver_check.cpp test/native/emulated_driver_streams_check.cpp
      test/native/emulated_driver_memory_check.cpp test/native/emulated_driver_launch_check.cpp)
    target_compile_options(emulated_driver_check PRIVATE ${lowrank_warnings})
    target_include_directories(emulated_driver_check PRIVATE ${CMAKE_CURRENT_SOURCE_DIR})
    target_link_libraries(emulated_driver_check PRIVATE Threads::Threads ${CMAKE_DL_LIBS})
    set_target_properties(emulated_driver_source emulated_driver_checked PROPERTIES
                          EXCLUDE_FROM_ALL ON)
    set_target_properties(emulated_driver_check PROPERTIES
                          RUNTIME_OUTPUT_DIRECTORY ${lowrank_output_dir})
    add_dependencies(emulated_driver_check emulated_driver_source emulated_driver_checked)
  endif()

  # --- The translator's own checks: each instruction against an oracle (PTX is generated, so nvcc is
  # not needed), and the emulator's planted bugs from translated PTX.
  function(lowrank_emulator_check_program target)
    add_executable(${target} EXCLUDE_FROM_ALL $<TARGET_OBJECTS:lowrank_emulator_runtime> ${ARGN})
    set_target_properties(${target} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${lowrank_output_dir})
    lowrank_emulator_compile(${target})
    target_include_directories(${target} PRIVATE ${CMAKE_CURRENT_BINARY_DIR}/ptx)
    target_link_libraries(${target} PRIVATE Threads::Threads ${CMAKE_DL_LIBS})
  endfunction()
  if(EXISTS ${CMAKE_CURRENT_SOURCE_DIR}/test/native/ptx_instructions_check.cpp)
    set(cases ${CMAKE_CURRENT_BINARY_DIR}/ptx/ptx_instruction_cases)
    set(generator ${CMAKE_CURRENT_SOURCE_DIR}/test/emulator/ptx-instruction-cases.mjs)
    file(MAKE_DIRECTORY ${CMAKE_CURRENT_BINARY_DIR}/ptx)
    add_custom_command(
      OUTPUT ${cases}.ptx ${cases}.h
      COMMAND node ${generator} ${cases}.ptx ${cases}.h
      DEPENDS ${generator} ${CMAKE_CURRENT_SOURCE_DIR}/test/emulator/ptx-oracle.mjs VERBATIM)
    lowrank_translate_ptx(${cases}.ptx 1 parts)
    lowrank_emulator_check_program(ptx_instructions_check
      test/native/ptx_instructions_check.cpp ${cases}.h ${parts})
    if(lowrank_build_kernels)
      lowrank_translate_kernel(test/native/emulator_cases.cu parts)
      lowrank_emulator_check_program(ptx_selftest test/native/emulator_selftest.cpp ${parts})
    endif()
  endif()

  # --- The kernels under every check against their formulas, plan by plan: run by
  # test/emulator/kernels.test.ts.
  if(EXISTS ${CMAKE_CURRENT_SOURCE_DIR}/test/native/cuda_small_m_check.cpp)
    foreach(check gemm_mma lora small_m streaming)
      lowrank_emulator_check_program(cuda_${check}_check test/native/cuda_${check}_check.cpp
                                     $<TARGET_OBJECTS:emulator_check>)
      target_link_libraries(cuda_${check}_check PRIVATE lowrank_core)
    endforeach()
  endif()

  include(${CMAKE_CURRENT_LIST_DIR}/hopper/checks.cmake)
endif()
