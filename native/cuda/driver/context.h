/// One GPU: what is known of it before it is started, and its started context with the kernels.
#pragma once

#include <atomic>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "native/cuda/driver/kernel_image.h"
#include "native/cuda/driver/library.h"
#include "native/cuda/driver/op_log.h"
#include "native/cuda/plans/plan.h"

namespace lowrank::cuda {

/// The oldest compute capability that has what the kernels use: cp.async, ldmatrix, bf16 mma.
constexpr int kNeededSm = 80;

struct Gpu {
  CUdevice device = 0;
  std::string card;
  int64_t memory_bytes = 0;
  DeviceLimits limits;
};

/// Asks without starting anything. Fails with kDevice where the device cannot run the kernels.
Status ProbeGpu(const Library& library, int ordinal, Gpu* gpu);

/// Fails with kDevice if no kernel was built for the GPU, or its driver cannot read them.
Status CheckImage(const KernelImage& image, const Gpu& gpu, const Library& library);

class Context {
 public:
  /// `device` is the public name, for messages.
  Context(std::string device, const Library& library)
      : device_(std::move(device)), library_(library) {}
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  /// Makes the context current on the calling thread, which will issue the work, and loads the
  /// kernels; `image` is null for a driver that brings its own. A failed start releases what it
  /// took, and may be retried.
  Status Start(const Gpu& gpu, const KernelImage* image);
  /// Undoes a start that the caller cannot use.
  void Stop();
  /// Makes it current on another of our threads; calls on that thread then break no one's capture.
  Status Attach();

  const std::string& device() const { return device_; }
  const Driver& driver() const { return library_.driver; }
  const DeviceLimits& limits() const { return limits_; }
  CUstream home() const { return home_; }
  CUmemoryPool pool() const { return pool_; }
  CUcontext handle() const { return context_; }

  /// The result of a call as a status: kOom or kCompute. After a device fault the context is lost,
  /// and the status names the ops that were running.
  Status Check(CUresult result, const char* call);
  /// Why the device can no longer be used; OK while it can.
  Status lost() const;

  /// The steps of one op; issuing thread only, like Start. All but the first may start before the
  /// previous one has ended (programmatic dependent launch); their kernels then wait themselves.
  Status Launch(const std::vector<LaunchStep>& steps, CUstream stream);

  /// A whole graph, as one launch.
  Status LaunchGraph(CUgraphExec graph, CUstream stream);
  /// Kernels and graphs so far; any thread.
  int64_t launches() const { return launches_.load(std::memory_order_relaxed); }

  OpLog& ops() { return ops_; }

 private:
  struct Kernel {
    CUfunction function = nullptr;
    uint32_t shared_bytes = 48 << 10;  // dynamic shared memory it may be launched with
    bool waits = false;                // for the launches before it, when launched to overlap
  };

  Status StartParts(const Gpu& gpu, const KernelImage* image);
  Status LoadKernels(const Gpu& gpu, const KernelImage* image);
  Status LoadModule(const void* bytes, const std::string& name, CUmodule* module);
  Status FindKernel(const char* name, Kernel** kernel);
  Status LaunchOne(const LaunchStep& step, bool overlap, CUstream stream);
  Status AllowShared(Kernel* kernel, uint32_t bytes);
  Status EncodeMaps(const LaunchStep& step, unsigned char* params);
  Status Lose(CUresult result, const char* call);

  const std::string device_;
  const Library& library_;
  DeviceLimits limits_;
  CUdevice gpu_ = 0;
  CUcontext context_ = nullptr;
  CUstream home_ = nullptr;
  CUmemoryPool pool_ = nullptr;
  std::vector<CUmodule> modules_;
  std::unordered_map<std::string, CUmodule> module_of_;  // by kernel; empty for the emulator
  std::unordered_map<std::string_view, Kernel> kernels_;
  OpLog ops_;
  std::atomic<int64_t> launches_{0};

  std::atomic<bool> is_lost_{false};
  mutable std::mutex mutex_;
  Status lost_;
};

/// Makes a context current temporarily, on any thread, then restores that thread's own. Free on our
/// threads, where it is always current. Calls made meanwhile are not part of anyone's stream
/// capture and do not invalidate it (cuThreadExchangeStreamCaptureMode).
class Visit {
 public:
  explicit Visit(Context* context);
  ~Visit();
  Visit(const Visit&) = delete;
  Visit& operator=(const Visit&) = delete;
  const Status& status() const { return status_; }

 private:
  Context& context_;
  bool pushed_ = false;
  bool relaxed_ = false;
  CUstreamCaptureMode mode_ = CU_STREAM_CAPTURE_MODE_RELAXED;  // exchanged with the thread's own
  Status status_;
};

}  // namespace lowrank::cuda
