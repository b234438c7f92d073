# liblowrank.so.1: the ops for C, over the same objects as the addon. In a build with the addon it is the
# target lowrank_c, which nothing else needs; with LOWRANK_ADDON=OFF it is all that is built:
#
#   cmake -S . -B build -DLOWRANK_ADDON=OFF && cmake --build build -j && cmake --install build
include(GNUInstallDirs)

file(READ ${CMAKE_CURRENT_SOURCE_DIR}/package.json package_json)
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS
             ${CMAKE_CURRENT_SOURCE_DIR}/package.json)
string(JSON lowrank_version GET "${package_json}" version)

set(c_api_dir ${CMAKE_CURRENT_SOURCE_DIR}/native/c_api)
add_library(lowrank_c SHARED ${c_api_sources})
if(LOWRANK_ADDON)
  set_target_properties(lowrank_c PROPERTIES EXCLUDE_FROM_ALL ON)
endif()
set_target_properties(lowrank_c PROPERTIES
  OUTPUT_NAME lowrank EXPORT_NAME lowrank SOVERSION 1
  LINK_DEPENDS ${c_api_dir}/lowrank.map)
target_include_directories(lowrank_c PUBLIC
  $<BUILD_INTERFACE:${c_api_dir}/include> $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
target_compile_definitions(lowrank_c PRIVATE LOWRANK_BUILDS_LIBRARY
                                             LOWRANK_VERSION="${lowrank_version}")
target_compile_options(lowrank_c PRIVATE ${lowrank_warnings} ${sanitize_flags})
# nodelete: the threads outlive a dlclose().
target_link_options(lowrank_c PRIVATE
  -Wl,-z,nodelete -Wl,--exclude-libs,ALL -Wl,--no-undefined
  -Wl,--version-script=${c_api_dir}/lowrank.map ${sanitize_flags})
target_link_libraries(lowrank_c PRIVATE lowrank_core)
if(NOT LOWRANK_SANITIZE)
  # A program in C, or one with another C++ library, needs none of ours.
  target_link_options(lowrank_c PRIVATE -static-libstdc++ -static-libgcc)
  # By the linker: a command after it would make the library look older than its own link.
  if(CMAKE_BUILD_TYPE STREQUAL "Release")
    target_link_options(lowrank_c PRIVATE -Wl,-s)
  endif()
endif()

install(TARGETS lowrank_c EXPORT lowrankTargets LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(DIRECTORY ${c_api_dir}/include/ DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
# The kernels of GPUs are looked for beside the library.
install(FILES ${lowrank_output_dir}/lowrank.fatbin DESTINATION ${CMAKE_INSTALL_LIBDIR} OPTIONAL)
# Relative, so that `cmake --install --prefix` and a moved folder are right.
file(RELATIVE_PATH lowrank_pc_to_prefix /prefix/${CMAKE_INSTALL_LIBDIR}/pkgconfig /prefix)
configure_file(${c_api_dir}/lowrank.pc.in ${CMAKE_CURRENT_BINARY_DIR}/lowrank.pc @ONLY)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/lowrank.pc
        DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)

include(CMakePackageConfigHelpers)
set(config_dir ${CMAKE_INSTALL_LIBDIR}/cmake/lowrank)
install(EXPORT lowrankTargets NAMESPACE lowrank:: DESTINATION ${config_dir})
configure_package_config_file(${c_api_dir}/lowrankConfig.cmake.in
  ${CMAKE_CURRENT_BINARY_DIR}/lowrankConfig.cmake INSTALL_DESTINATION ${config_dir})
write_basic_package_version_file(${CMAKE_CURRENT_BINARY_DIR}/lowrankConfigVersion.cmake
  VERSION ${lowrank_version} COMPATIBILITY AnyNewerVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/lowrankConfig.cmake
              ${CMAKE_CURRENT_BINARY_DIR}/lowrankConfigVersion.cmake
        DESTINATION ${config_dir})
