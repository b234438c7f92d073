# The sm_90a models against plain definitions, planted bugs, and the wgmma kernel against its formula
# (instrumented, and from its PTX): run by test/emulator/hopper.test.ts.
if(EXISTS ${CMAKE_CURRENT_SOURCE_DIR}/test/native/hopper_kernel_check.cpp)
  foreach(check copies findings wgmma)
    lowrank_emulator_check_program(hopper_${check}_check test/native/hopper_${check}_check.cpp)
    target_link_libraries(hopper_${check}_check PRIVATE lowrank_core)
  endforeach()
  # Planted bugs whose kernels report every access.
  set(hopper_cases test/native/hopper_cases.cu)
  set_source_files_properties(${hopper_cases} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS
                              "-xc++;${emulator_hooks};-Wno-unknown-pragmas")
  lowrank_emulator_check_program(hopper_selftest test/native/hopper_selftest.cpp ${hopper_cases})
  target_link_libraries(hopper_selftest PRIVATE lowrank_core)
  lowrank_emulator_check_program(hopper_kernel_check test/native/hopper_kernel_check.cpp
                                 $<TARGET_OBJECTS:emulator_check>)
  target_link_libraries(hopper_kernel_check PRIVATE lowrank_core)
  if(lowrank_build_kernels)
    lowrank_emulator_check_program(hopper_kernel_ptx_check test/native/hopper_kernel_check.cpp
                                   $<TARGET_OBJECTS:emulator_ptx>)
    target_link_libraries(hopper_kernel_ptx_check PRIVATE lowrank_core)
  endif()
endif()
