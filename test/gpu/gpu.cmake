# The programs of `npm run gpu:test` and `npm run gpu:bench`. None is part of the default build:
#
#   gpu_programs        all that a GPU is tested and timed with
#   gpu_self_proof      what test/gpu/gpu-programs.test.ts runs without one
set(gpu_instruction_kernels
  test/gpu/instruction_kernels_sm80.cu test/gpu/instruction_kernels_sm90a.cu)

function(lowrank_gpu_program target)
  add_executable(${target} EXCLUDE_FROM_ALL ${ARGN})
  target_compile_options(${target} PRIVATE ${lowrank_warnings})
  target_link_libraries(${target} PRIVATE lowrank_core)
  set_target_properties(${target} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${lowrank_output_dir})
endfunction()

lowrank_gpu_program(gpu_instructions_check
  test/gpu/instructions_check.cpp test/gpu/instruction_trials.cpp)
lowrank_gpu_program(gpu_ops_check
  test/gpu/ops_check.cpp test/gpu/repeat_cases.cpp test/gpu/large_cases.cpp)
lowrank_gpu_program(gpu_bench
  bench/gpu/gpu_bench.cpp bench/gpu/timing.cpp bench/gpu/cublas.cpp)
set(gpu_programs gpu_instructions_check gpu_ops_check gpu_bench)
add_custom_target(gpu_programs DEPENDS ${gpu_programs})
add_custom_target(gpu_self_proof DEPENDS ${gpu_programs})

if(TARGET lowrank_emulator)
  set_source_files_properties(${gpu_instruction_kernels} PROPERTIES
                              LANGUAGE CXX COMPILE_OPTIONS "-xc++")
  lowrank_emulator_library(gpu_instructions "-instructions" SOURCES ${gpu_instruction_kernels})
  # Three instructions wrong on purpose, for the proof that the comparison sees it.
  lowrank_emulator_library(gpu_instructions_planted "-instructions-planted"
                           SOURCES ${gpu_instruction_kernels})
  target_compile_definitions(gpu_instructions_planted PRIVATE LOWRANK_PLANT)
  set_target_properties(gpu_instructions gpu_instructions_planted PROPERTIES EXCLUDE_FROM_ALL ON)
  add_dependencies(gpu_programs gpu_instructions lowrank_emulator)
  add_dependencies(gpu_self_proof gpu_instructions gpu_instructions_planted lowrank_emulator)
endif()

if(lowrank_build_kernels)
  lowrank_pack_kernels(lowrank-instructions.fatbin ${gpu_instruction_kernels})
  add_custom_target(gpu_instruction_image DEPENDS ${lowrank_output_dir}/lowrank-instructions.fatbin)
  add_dependencies(gpu_programs gpu_instruction_image lowrank_kernels)
endif()
