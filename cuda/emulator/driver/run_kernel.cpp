/// A program that launches one kernel over any driver library (the emulator, or libcuda), told by a
/// file of lines; `lowrank emulate --kernel` writes that file.
///
///   library PATH         opened with dlopen
///   kernel NAME
///   grid X Y Z
///   threads N            of a block
///   shared BYTES         dynamic shared memory
///   cluster N            blocks along x
///   value OFFSET HEX     bytes of the parameter struct
///   buffer OFFSET BYTES INPUT OUTPUT
///                        device memory whose address goes to OFFSET: filled from the file INPUT
///                        ("-": left as it is), written to the file OUTPUT at the end
///   params BYTES         size of the parameter struct
///
/// Says on stderr what failed, and exits with 1 then.
#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <sstream>
#include <string>
#include <vector>

#include "native/cuda/driver/driver.h"

namespace lowrank::cuda {
namespace {

struct Buffer {
  size_t offset_bytes = 0;
  size_t bytes = 0;
  std::string input;
  std::string output;
  CUdeviceptr data = 0;
};

struct Spec {
  std::string library;
  std::string kernel;
  unsigned grid[3] = {1, 1, 1};
  unsigned threads = 1;
  unsigned shared_bytes = 0;
  unsigned cluster = 1;
  std::vector<unsigned char> params;
  std::vector<std::pair<size_t, std::string>> values;  // offset in bytes, hexadecimal
  std::vector<Buffer> buffers;
};

bool Say(const std::string& text) {
  std::fprintf(stderr, "%s\n", text.c_str());
  return false;
}

bool ReadSpec(const char* path, Spec* spec) {
  std::ifstream file(path);
  std::string line;
  size_t param_bytes = 0;
  while (std::getline(file, line)) {
    std::istringstream words(line);
    std::string key;
    words >> key >> std::ws;
    if (key == "library") std::getline(words, spec->library);
    if (key == "kernel") words >> spec->kernel;
    if (key == "grid") words >> spec->grid[0] >> spec->grid[1] >> spec->grid[2];
    if (key == "threads") words >> spec->threads;
    if (key == "shared") words >> spec->shared_bytes;
    if (key == "cluster") words >> spec->cluster;
    if (key == "params") words >> param_bytes;
    if (key == "value") {
      spec->values.emplace_back();
      words >> spec->values.back().first >> spec->values.back().second;
    }
    if (key == "buffer") {
      Buffer buffer;
      words >> buffer.offset_bytes >> buffer.bytes >> buffer.input >> buffer.output;
      spec->buffers.push_back(buffer);
    }
    if (words.fail()) return Say("malformed line: " + line);
  }
  spec->params.resize(param_bytes);
  const auto fits = [&](size_t offset, size_t bytes) { return offset + bytes <= param_bytes; };
  for (const auto& [offset, hex] : spec->values) {
    if (!fits(offset, hex.size() / 2)) return Say("a value lies outside the parameters");
    for (size_t i = 0; i + 1 < hex.size(); i += 2) {
      spec->params[offset + i / 2] =
          static_cast<unsigned char>(std::strtoul(hex.substr(i, 2).c_str(), nullptr, 16));
    }
  }
  for (const Buffer& buffer : spec->buffers) {
    if (!fits(buffer.offset_bytes, sizeof(CUdeviceptr))) {
      return Say("a pointer lies outside the parameters");
    }
  }
  return !spec->library.empty() && !spec->kernel.empty() ? true : Say("no library or no kernel");
}

/// Calls of the driver, the first failure of which is told.
class Runner {
 public:
  bool Run(const Spec& spec) { return Open(spec) && Prepare(spec) && Launch(spec) && Finish(spec); }

 private:
  bool Check(CUresult result, const char* call) {
    if (result == CUDA_SUCCESS) return true;
    const char* text = nullptr;
    driver_.cuGetErrorString(result, &text);
    return Say(std::string(call) + ": " + (text == nullptr ? "error" : text) + " (" +
               std::to_string(result) + ")" + (report_ == nullptr ? "" : ReportLine()));
  }

  std::string ReportLine() {
    const std::string report = report_();
    return report.empty() ? "" : "\n" + report;
  }

  bool Open(const Spec& spec) {
    void* library = dlopen(spec.library.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) return Say(dlerror());
    const char* missing = nullptr;
#define LOWRANK_LOOK_UP(symbol, parameters)                                             \
  driver_.symbol = reinterpret_cast<decltype(driver_.symbol)>(dlsym(library, #symbol)); \
  if (driver_.symbol == nullptr) missing = #symbol;
    LOWRANK_FOR_EACH_CUDA_CALL(LOWRANK_LOOK_UP)
#undef LOWRANK_LOOK_UP
    if (missing != nullptr) return Say(spec.library + " lacks " + missing);
    report_ = reinterpret_cast<const char* (*)()>(dlsym(library, "lowrankEmulatorLastReport"));
    CUcontext context = nullptr;
    return Check(driver_.cuInit(0), "cuInit") &&
           Check(driver_.cuDeviceGet(&device_, 0), "cuDeviceGet") &&
           Check(driver_.cuDevicePrimaryCtxRetain(&context, device_), "cuDevicePrimaryCtxRetain") &&
           Check(driver_.cuCtxSetCurrent(context), "cuCtxSetCurrent");
  }

  bool Prepare(const Spec& spec) {
    // The emulator's kernels are in the library: any image will do.
    if (!Check(driver_.cuModuleLoadData(&module_, "image"), "cuModuleLoadData")) return false;
    const CUresult found = driver_.cuModuleGetFunction(&function_, module_, spec.kernel.c_str());
    if (found == CUDA_ERROR_NOT_FOUND) return Say("there is no kernel " + spec.kernel);
    params_ = spec.params;
    buffers_ = spec.buffers;
    for (Buffer& buffer : buffers_) {
      if (!Check(driver_.cuMemAlloc_v2(&buffer.data, buffer.bytes), "cuMemAlloc")) return false;
      std::copy_n(reinterpret_cast<const unsigned char*>(&buffer.data), sizeof(buffer.data),
                  params_.begin() + static_cast<std::ptrdiff_t>(buffer.offset_bytes));
      if (buffer.input == "-") continue;
      std::ifstream file(buffer.input, std::ios::binary);
      const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
      if (bytes.size() != buffer.bytes) return Say(buffer.input + " has another size");
      if (!Check(driver_.cuMemcpyHtoDAsync_v2(buffer.data, bytes.data(), bytes.size(), nullptr),
                 "cuMemcpyHtoDAsync")) {
        return false;
      }
    }
    if (!Check(found, "cuModuleGetFunction")) return false;
    const std::string beyond = BeyondLimits(spec);
    if (!beyond.empty()) return Say("the launch was refused: " + beyond);
    return Check(
        driver_.cuFuncSetAttribute(function_, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                                   static_cast<int>(spec.shared_bytes)),
        "cuFuncSetAttribute (shared memory)");
  }

  int OfKernel(CUfunction_attribute attribute) {
    int value = 0;
    driver_.cuFuncGetAttribute(&value, attribute, function_);
    return value;
  }
  int OfDevice(CUdevice_attribute attribute) {
    int value = 0;
    driver_.cuDeviceGetAttribute(&value, attribute, device_);
    return value;
  }

  /// What the kernel or the device does not have, in words; a driver says numbers.
  std::string BeyondLimits(const Spec& spec) {
    const auto text = [](auto value) { return std::to_string(value); };
    const int threads = OfKernel(CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK);
    if (static_cast<int64_t>(spec.threads) > threads) {
      return "the kernel is compiled for blocks of up to " + text(threads) +
             " threads (__launch_bounds__), got " + text(spec.threads);
    }
    const int device_bytes = OfDevice(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN);
    const int own_bytes = OfKernel(CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES);
    if (static_cast<int64_t>(spec.shared_bytes) > device_bytes - own_bytes) {
      return "a block has " + text(device_bytes) + " bytes of shared memory, of which the kernel " +
             "declares " + text(own_bytes) + ", got " + text(spec.shared_bytes) + " beside these";
    }
    const int major = OfDevice(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
    if (spec.cluster > 1 && major < 9) {
      const int minor = OfDevice(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
      return "clusters are of devices from sm_90 on, got one of " + text(spec.cluster) +
             " blocks on sm_" + text(major) + text(minor);
    }
    if (spec.cluster > 1 && spec.grid[0] % spec.cluster != 0) {
      return "a grid of clusters is a multiple of their " + text(spec.cluster) + " blocks, got " +
             text(spec.grid[0]);
    }
    return "";
  }

  bool Launch(const Spec& spec) {
    CUlaunchAttribute cluster = {};
    cluster.id = CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
    cluster.value.clusterDim = {spec.cluster, 1, 1};
    CUlaunchConfig config = {};
    config.gridDimX = spec.grid[0];
    config.gridDimY = spec.grid[1];
    config.gridDimZ = spec.grid[2];
    config.blockDimX = spec.threads;
    config.blockDimY = config.blockDimZ = 1;
    config.sharedMemBytes = spec.shared_bytes;
    config.attrs = &cluster;
    config.numAttrs = spec.cluster > 1 ? 1 : 0;
    // Packed, so that a struct of another size than the kernel's is refused.
    size_t bytes = params_.size();
    void* end = nullptr;
    void* extra[] = {reinterpret_cast<void*>(uintptr_t{1}), params_.data(),
                     reinterpret_cast<void*>(uintptr_t{2}), &bytes, end};
    const CUresult launched = driver_.cuLaunchKernelEx(&config, function_, nullptr, extra);
    if (launched == CUDA_ERROR_INVALID_VALUE) {
      Say("the launch was refused: is a parameter struct of " + std::to_string(bytes) +
          " bytes what the kernel takes?");
    }
    return Check(launched, "cuLaunchKernelEx") &&
           Check(driver_.cuStreamSynchronize(nullptr), spec.kernel.c_str());
  }

  bool Finish(const Spec&) {
    for (const Buffer& buffer : buffers_) {
      std::vector<char> bytes(buffer.bytes);
      if (!Check(driver_.cuMemcpyDtoHAsync_v2(bytes.data(), buffer.data, bytes.size(), nullptr),
                 "cuMemcpyDtoHAsync")) {
        return false;
      }
      std::ofstream file(buffer.output, std::ios::binary);
      file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
      if (!file.good()) return Say("cannot write " + buffer.output);
    }
    return true;
  }

  Driver driver_;
  CUdevice device_ = 0;
  const char* (*report_)() = nullptr;
  CUmodule module_ = nullptr;
  CUfunction function_ = nullptr;
  std::vector<unsigned char> params_;
  std::vector<Buffer> buffers_;
};

}  // namespace
}  // namespace lowrank::cuda

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: lowrank-emulator-run SPEC\n");
    return 2;
  }
  lowrank::cuda::Spec spec;
  if (!lowrank::cuda::ReadSpec(argv[1], &spec)) return 1;
  return lowrank::cuda::Runner().Run(spec) ? 0 : 1;
}
