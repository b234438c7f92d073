# Compiles cuda/*/*.cu with nvcc, one fat binary a file, and packs them into `lowrank.fatbin` beside
# the addon (format: native/cuda/driver/kernel_image.h). Without nvcc the addon is built alone.
#
#   LOWRANK_CUDA        AUTO: if nvcc is found · ON: nvcc must be there · OFF
#   LOWRANK_CUDA_ARCHS  "auto": of the GPUs found here, or 80;90a where there is none, and PTX ·
#                       "package": all that a package carries, as far as this nvcc has it, and PTX ·
#                       a list such as "80;90a;ptx"
#   LOWRANK_LINE_TABLES ON: machine code says which line an instruction comes from, for profilers
set(LOWRANK_CUDA AUTO CACHE STRING "compile the CUDA kernels: AUTO, ON or OFF")
set(LOWRANK_CUDA_ARCHS auto CACHE STRING "auto, package, or a list such as 80;90a;ptx")
option(LOWRANK_LINE_TABLES "tables of source lines in the CUDA kernels' machine code" OFF)

# Contraction is off in every compiler of a kernel, so that all give the same bits. A spill or a stack
# frame is an error: it costs more than any tile gains. The front end tells of lines in any case: the
# emulator's reports are of them.
set(lowrank_nvcc_front_end -std=c++17 -O3 -fmad=false -lineinfo)
set(lowrank_nvcc_flags -O3 -Xptxas -warn-spills,-warn-lmem-usage,--warning-as-error)
if(LOWRANK_LINE_TABLES)
  list(APPEND lowrank_nvcc_flags -lineinfo)
endif()

# Where binaries go: cmake-js names the folder, by hand it is the build folder.
set(lowrank_output_dir ${CMAKE_LIBRARY_OUTPUT_DIRECTORY})
if(NOT lowrank_output_dir)
  set(lowrank_output_dir ${CMAKE_CURRENT_BINARY_DIR})
endif()

find_program(LOWRANK_NVCC nvcc
  HINTS $ENV{CUDA_PATH} $ENV{CUDA_HOME} PATH_SUFFIXES bin
  DOC "the CUDA compiler")

# Compressed. For a package, where this nvcc has it, by the strongest way, which makes two thirds of
# the size in half again the time of the compilation.
if(LOWRANK_NVCC)
  execute_process(COMMAND ${LOWRANK_NVCC} --version OUTPUT_VARIABLE nvcc_version ERROR_QUIET)
  string(REGEX MATCH "V([0-9]+\\.[0-9]+)" nvcc_version "${nvcc_version}")
  if(LOWRANK_CUDA_ARCHS STREQUAL "package" AND CMAKE_MATCH_1 VERSION_GREATER_EQUAL 12.4)
    list(APPEND lowrank_nvcc_flags --compress-mode=size)
  else()
    list(APPEND lowrank_nvcc_flags -Xfatbin -compress-all)
  endif()
endif()

set(lowrank_build_kernels OFF)
if(LOWRANK_CUDA STREQUAL "OFF")
  message(STATUS "lowrank: CUDA kernels are not built (LOWRANK_CUDA=OFF)")
elseif(LOWRANK_NVCC)
  set(lowrank_build_kernels ON)
elseif(LOWRANK_CUDA STREQUAL "ON")
  message(FATAL_ERROR "LOWRANK_CUDA=ON, but nvcc is not on the PATH nor in CUDA_PATH or CUDA_HOME")
else()
  # At the end of every build, where it is seen.
  add_custom_target(lowrank_no_kernels ALL COMMAND ${CMAKE_COMMAND} -E true
    COMMENT "lowrank: the CUDA kernels were not built: nvcc is not on the PATH, nor in CUDA_PATH or \
CUDA_HOME. Everything else was.")
  if(TARGET lowrank)
    add_dependencies(lowrank_no_kernels lowrank)
  endif()
endif()

# "8.6" -> 86, "9.0" -> 90a, which is what uses wgmma; one that this nvcc does not have is left to PTX.
function(lowrank_detect_archs out)
  set(archs)
  find_program(LOWRANK_NVIDIA_SMI nvidia-smi)
  if(LOWRANK_NVIDIA_SMI)
    execute_process(COMMAND ${LOWRANK_NVIDIA_SMI} --query-gpu=compute_cap --format=csv,noheader
                    OUTPUT_VARIABLE capabilities OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
    string(REGEX MATCHALL "[0-9]+\\.[0-9]" capabilities "${capabilities}")
    foreach(capability ${capabilities})
      string(REPLACE "." "" arch ${capability})
      if(arch EQUAL 90)
        list(APPEND archs 90a)
      elseif(arch GREATER_EQUAL 80)
        list(APPEND archs ${arch})
      endif()
    endforeach()
    list(REMOVE_DUPLICATES archs)
  endif()
  if(NOT archs)
    set(archs 80 90a)
  endif()
  set(${out} ${archs} PARENT_SCOPE)
endfunction()

# Leaves out what this nvcc does not have: there the PTX runs.
function(lowrank_keep_known_archs)
  execute_process(COMMAND ${LOWRANK_NVCC} --list-gpu-code OUTPUT_VARIABLE codes ERROR_QUIET)
  string(REGEX MATCHALL "sm_[0-9]+" codes "${codes}")
  set(archs)
  foreach(arch ${lowrank_archs})
    string(REGEX MATCH "^[0-9]+" number ${arch})
    if(arch STREQUAL "ptx" OR NOT codes OR "sm_${number}" IN_LIST codes)
      list(APPEND archs ${arch})
    endif()
  endforeach()
  set(lowrank_archs ${archs} PARENT_SCOPE)
endfunction()

# sm_100 is for 10.3 too, and sm_120 for 12.1: machine code runs within its generation.
if(LOWRANK_CUDA_ARCHS STREQUAL "auto")
  lowrank_detect_archs(lowrank_archs)
  list(APPEND lowrank_archs ptx)
elseif(LOWRANK_CUDA_ARCHS STREQUAL "package")
  set(lowrank_archs 80 86 89 90a 100 120 ptx)
else()
  set(lowrank_archs ${LOWRANK_CUDA_ARCHS})
endif()
if(lowrank_build_kernels AND LOWRANK_CUDA_ARCHS MATCHES "^(auto|package)$")
  lowrank_keep_known_archs()
endif()

# A file for all architectures becomes one PTX, that of compute_80, which the emulator translates. Below
# 9.0 machine code is made of it, and from there on of compute_90's, which is the same but that a launch
# waits for those that it overlaps (machine-ptx.mjs): the front end runs once. "ptx" adds that of
# compute_90, which the drivers of later devices compile; those of 8.x run machine code of 8.0. A file named *_sm90.cu is for 9.0 and later, from its own PTX of
# compute_90, and one named *_sm90a.cu for that architecture alone. Where each PTX with its lines is: the
# global property lowrank_ptx_<file>_<80, 90 or 90a>.
function(lowrank_compile_kernel source out)
  get_filename_component(name ${source} NAME_WE)
  set(archs ${lowrank_archs})
  set(first 80)
  if(name MATCHES "_sm([0-9]+a)$")
    set(first ${CMAKE_MATCH_1})
    list(FILTER archs INCLUDE REGEX "^${first}$")
  elseif(name MATCHES "_sm90$")
    set(first 90)
    list(FILTER archs INCLUDE REGEX "^(9[0-9]|1[0-9][0-9]|ptx)")
  endif()
  if(NOT archs)
    set(${out} PARENT_SCOPE)
    return()
  endif()
  foreach(arch ${archs})
    string(REGEX MATCH "^[0-9]+" number ${arch})
    if(arch STREQUAL "ptx")
      list(APPEND flags_90 -gencode arch=compute_90,code=compute_90)
      list(APPEND targets_90 compute_90)
    elseif(NOT arch STREQUAL first AND number GREATER_EQUAL 90)
      list(APPEND flags_90 -gencode arch=compute_90,code=sm_${arch})
      list(APPEND targets_90 sm_${arch})
    else()
      list(APPEND flags_${first} -gencode arch=compute_${first},code=sm_${arch})
      list(APPEND targets_${first} sm_${arch})
    endif()
  endforeach()
  set(dir ${CMAKE_CURRENT_BINARY_DIR}/kernels/${name})
  set(ptx ${dir}/lines/${name}.compute_${first}.ptx)
  set_property(GLOBAL PROPERTY lowrank_ptx_${name}_${first} ${ptx})
  # What another list of architectures left in the folder is not to be taken for this one's.
  add_custom_command(
    OUTPUT ${ptx}
    COMMAND ${CMAKE_COMMAND} -E rm -rf ${dir}
    COMMAND ${CMAKE_COMMAND} -E make_directory ${dir}/lines
    COMMAND ${LOWRANK_NVCC} ${lowrank_nvcc_front_end} -I ${CMAKE_CURRENT_SOURCE_DIR}
            -arch=compute_${first} -MD -MT ${ptx} -MF ${dir}/${name}.d
            -ptx ${CMAKE_CURRENT_SOURCE_DIR}/${source} -o ${ptx}
    DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/${source}
    DEPFILE ${dir}/${name}.d
    COMMENT "nvcc -ptx ${source} (compute_${first})" VERBATIM)
  set(tool ${CMAKE_CURRENT_SOURCE_DIR}/cuda/tools/machine-ptx.mjs)
  set(lines)
  if(LOWRANK_LINE_TABLES)
    set(lines --lines)
  endif()
  set(bases)
  set(machine_ptx)
  set(machine_files)
  foreach(base 90 ${first}) # the first that a device can load is its own
    if(flags_${base} AND NOT base IN_LIST bases)
      list(APPEND bases ${base})
      list(APPEND machine_ptx sm_${base}=${dir}/${name}.compute_${base}.ptx)
      list(APPEND machine_files ${dir}/${name}.compute_${base}.ptx)
    endif()
  endforeach()
  add_custom_command(OUTPUT ${machine_files} COMMAND node ${tool} ${lines} ${ptx} ${machine_ptx}
                     DEPENDS ${tool} ${ptx} VERBATIM)
  if(flags_90 AND first EQUAL 80) # made of that of compute_80
    set(ptx_90 ${dir}/lines/${name}.compute_90.ptx)
    set_property(GLOBAL PROPERTY lowrank_ptx_${name}_90 ${ptx_90})
    add_custom_command(OUTPUT ${ptx_90} COMMAND node ${tool} --lines ${ptx} sm_90=${ptx_90}
                       DEPENDS ${tool} ${ptx} VERBATIM)
  endif()
  set(modules)
  foreach(base ${bases})
    set(base_ptx ${dir}/${name}.compute_${base}.ptx)
    list(JOIN targets_${base} "," targets)
    set(binary ${dir}/${name}.compute_${base}.fatbin)
    # --keep: check:cuda reads the machine code.
    add_custom_command(
      OUTPUT ${binary}
      COMMAND ${LOWRANK_NVCC} ${lowrank_nvcc_flags} ${flags_${base}} --keep --keep-dir ${dir}
              -fatbin ${base_ptx} -o ${binary}
      DEPENDS ${base_ptx}
      COMMENT "nvcc ${name} (${targets})" VERBATIM)
    list(APPEND modules ${name}=${binary}=${targets}=${base_ptx})
  endforeach()
  set(${out} ${modules} PARENT_SCOPE)
endfunction()

# One file of them beside the addon.
function(lowrank_pack_kernels image)
  set(modules)
  set(module_files)
  foreach(source ${ARGN})
    lowrank_compile_kernel(${source} binaries)
    list(APPEND modules ${binaries})
    foreach(binary ${binaries})
      string(REGEX REPLACE "^[^=]*=([^=]*)=.*$" "\\1" module_file ${binary})
      list(APPEND module_files ${module_file})
    endforeach()
  endforeach()
  set(packer ${CMAKE_CURRENT_SOURCE_DIR}/cuda/tools/pack-kernels.mjs)
  add_custom_command(
    OUTPUT ${lowrank_output_dir}/${image}
    COMMAND node ${packer} ${lowrank_output_dir}/${image} ${LOWRANK_NVCC} ${modules}
    DEPENDS ${packer} ${module_files}
    COMMENT "Packing ${image}" VERBATIM)
endfunction()

if(lowrank_build_kernels AND kernel_sources)
  list(JOIN lowrank_archs " " archs_text)
  message(STATUS "lowrank: CUDA kernels for ${archs_text} with ${LOWRANK_NVCC}")
  lowrank_pack_kernels(lowrank.fatbin ${kernel_sources})
  add_custom_target(lowrank_kernels ALL DEPENDS ${lowrank_output_dir}/lowrank.fatbin)
endif()
