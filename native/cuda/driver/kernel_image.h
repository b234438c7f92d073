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
/// are multiples of 64, so that a part can be handed to cuModuleLoadData where it lies. A module is
/// what nvcc made of a source file, for some architectures; the first of a name that a device can
/// load is its own, the one after it for devices before. A file for one architecture alone
/// (*_sm90a.cu) then needs no counterpart elsewhere.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "native/core/status.h"

namespace lowrank::cuda {

/// What one cuda/*/*.cu became.
struct KernelModule {
  std::string name;                  // of the source file, without ending
  std::vector<std::string> targets;  // "sm_80", "sm_90a": machine code; "compute_80": PTX
  std::vector<std::string> kernels;
  const void* image = nullptr;  // for cuModuleLoadData; lives as long as the KernelImage
  size_t image_bytes = 0;

  /// Whether a device of this compute capability (major · 10 + minor) can load it.
  bool RunsOn(int sm) const { return HasCodeFor(sm) || HasPtxFor(sm); }
  /// As machine code, which a driver takes before PTX.
  bool HasCodeFor(int sm) const;
  bool HasPtxFor(int sm) const;
};

class KernelImage {
 public:
  KernelImage() = default;
  KernelImage(KernelImage&&) = default;  // modules point into the bytes: moved, never copied
  KernelImage& operator=(KernelImage&&) = default;

  /// Reads and checks the file. Fails with kDevice, saying what is wrong with it.
  static Status Open(const std::string& path, KernelImage* image);
  /// The same, over bytes in memory.
  static Status Parse(std::vector<char> bytes, const std::string& path, KernelImage* image);

  const std::vector<KernelModule>& modules() const { return modules_; }
  const std::string& compiler() const { return compiler_; }
  /// Fails with kDevice where a driver of this version (major · 1000 + minor · 10) does not read
  /// what a device of capability `sm` would be given. It reads machine code of every compiler of
  /// its own major version and older ones, and PTX up to the version that it came with.
  Status CheckDriver(int driver_version, int sm) const;
  /// Every target that some module holds, in order of appearance: for messages.
  std::vector<std::string> Targets() const;

 private:
  std::vector<char> bytes_;
  std::vector<KernelModule> modules_;
  std::string compiler_;
  int compiler_version_ = 0;    // as a driver's
  int ptx_driver_version_ = 0;  // of the first driver that compiles the PTX
  std::string ptx_;
};

}  // namespace lowrank::cuda
