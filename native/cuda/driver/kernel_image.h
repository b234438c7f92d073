/// The file of compiled kernels that lies beside the addon (`lowrank.fatbin`), as
/// cuda/tools/pack-kernels.mjs writes it: a text index, then one fat binary per cuda/*/*.cu.
///
///   lowrank-kernels 2 000000000312                  the format, and the bytes of this index
///   compiler nvcc 13.0.88                           which made the machine code
///   ptx 9.0                                         the version of the PTX instruction set
///   module matmul_mma_sm80 000000000640 000000081920 sm_90a,compute_90
///   kernel matmul_mma_code4_bf16_128x128_kernel     of the module above; any number
///   module matmul_mma_sm80 000000082560 000000081920 sm_80,compute_80
///
/// A module's fields are name, offset, bytes, targets. Offsets count from the start of the file and
/// are multiples of 64, so that a part can be passed to cuModuleLoadData in place. A module is the
/// output of nvcc for one source file and some architectures. Of the modules of one name, a device
/// uses the first that it can load; the next one is for older devices. A source file for a single
/// architecture (*_sm90a.cu) then needs no counterpart for the others.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "native/core/status.h"

namespace lowrank::cuda {

/// One compiled cuda/*/*.cu.
struct KernelModule {
  std::string name;                  // of the source file, without its extension
  std::vector<std::string> targets;  // "sm_80", "sm_90a": machine code; "compute_80": PTX
  std::vector<std::string> kernels;
  const void* image = nullptr;  // for cuModuleLoadData; lives as long as the KernelImage
  size_t image_bytes = 0;

  /// Whether a device of this compute capability (major · 10 + minor) can load it.
  bool RunsOn(int sm) const { return HasCodeFor(sm) || HasPtxFor(sm); }
  /// As machine code, which a driver prefers to PTX.
  bool HasCodeFor(int sm) const;
  bool HasPtxFor(int sm) const;
};

class KernelImage {
 public:
  KernelImage() = default;
  KernelImage(KernelImage&&) = default;  // modules point into the bytes: moved, never copied
  KernelImage& operator=(KernelImage&&) = default;

  /// Reads and checks the file. Fails with kDevice and says what is wrong with it.
  static Status Open(const std::string& path, KernelImage* image);
  /// The same, over bytes in memory.
  static Status Parse(std::vector<char> bytes, const std::string& path, KernelImage* image);

  const std::vector<KernelModule>& modules() const { return modules_; }
  const std::string& compiler() const { return compiler_; }
  /// Fails with kDevice if a driver of this version (major · 1000 + minor · 10) cannot read what a
  /// device of capability `sm` would load. A driver reads machine code from compilers of its own or
  /// an older major version, and PTX up to the version it came with.
  Status CheckDriver(int driver_version, int sm) const;
  /// Every target of any module, in order of appearance: for messages.
  std::vector<std::string> Targets() const;

 private:
  std::vector<char> bytes_;
  std::vector<KernelModule> modules_;
  std::string compiler_;
  int compiler_version_ = 0;    // as a driver version
  int ptx_driver_version_ = 0;  // the first driver that compiles the PTX
  std::string ptx_;
};

}  // namespace lowrank::cuda
