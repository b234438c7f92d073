# The fallback of `lowrank build` where CMake is missing. Sources and flags come from
# native/sources.json, as in CMakeLists.txt; sources.cjs only prints them in gyp's form.
{
  "variables": {
    "root": "<(module_root_dir)/../..",
    "warnings": ["-Wall", "-Wextra"],
    "common": ["-std=gnu++17", "-O2", "-ffp-contract=off", "-fvisibility=hidden", "-fPIC"]
  },
  "target_defaults": {
    "include_dirs": ["<(root)"],
    "cflags_cc": ["<@(common)", "<@(warnings)"],
    "cflags_cc!": ["-fno-exceptions", "-fno-rtti", "-std=gnu++20"]
  },
  "targets": [
    {
      "target_name": "kernels_avx2",
      "type": "static_library",
      "sources": ["<!@(node sources.cjs isa avx2 sources)"],
      "cflags_cc": ["<!@(node sources.cjs isa avx2 flags)"]
    },
    {
      "target_name": "kernels_avx512",
      "type": "static_library",
      "sources": ["<!@(node sources.cjs isa avx512 sources)"],
      "cflags_cc": ["<!@(node sources.cjs isa avx512 flags)"]
    },
    {
      "target_name": "kernels_avx512_vnni",
      "type": "static_library",
      "sources": ["<!@(node sources.cjs isa avx512_vnni sources)"],
      "cflags_cc": ["<!@(node sources.cjs isa avx512_vnni flags)"]
    },
    {
      "target_name": "kernels_avx512_bf16",
      "type": "static_library",
      "sources": ["<!@(node sources.cjs isa avx512_bf16 sources)"],
      "cflags_cc": ["<!@(node sources.cjs isa avx512_bf16 flags)"]
    },
    {
      "target_name": "kernels_avx512_amx",
      "type": "static_library",
      "sources": ["<!@(node sources.cjs isa avx512_amx sources)"],
      "cflags_cc": ["<!@(node sources.cjs isa avx512_amx flags)"]
    },
    {
      "target_name": "lowrank",
      "dependencies": ["kernels_avx2", "kernels_avx512", "kernels_avx512_vnni", "kernels_avx512_bf16", "kernels_avx512_amx"],
      "sources": ["<!@(node sources.cjs plain)"],
      "include_dirs": ["<!(node -p \"require('node-addon-api').include_dir\")"],
      "defines": ["NAPI_VERSION=8", "NODE_ADDON_API_CPP_EXCEPTIONS_ALL", "NODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS"],
      "cflags_cc": ["-fexceptions", "-Wno-shadow"],
      "ldflags": ["-Wl,-z,nodelete", "-Wl,--exclude-libs,ALL"],
      "libraries": ["-lpthread", "-ldl"]
    }
  ]
}
