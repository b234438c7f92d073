/// What the checks of the CUDA backend share: expectations, waiting, and short forms of its calls.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "native/core/runtime/registry.h"
#include "native/cuda/driver/library.h"

namespace lowrank {

inline int g_failures = 0;

inline void Expect(bool right, const std::string& what) {
  if (right) return;
  std::printf("FAILED %s\n", what.c_str());
  ++g_failures;
}

inline void ExpectOk(const Status& status, const std::string& what) {
  Expect(status.ok(), what + ": " + status.message());
}

/// Waits for one DoneFn.
class Wait {
 public:
  DoneFn Done() {
    return [this](const Status& status) {
      const std::lock_guard<std::mutex> lock(mutex_);
      status_ = status;
      done_ = true;
      ready_.notify_all();
    };
  }
  Status Get() {
    std::unique_lock<std::mutex> lock(mutex_);
    if (!ready_.wait_for(lock, std::chrono::seconds(60), [this] { return done_; })) {
      return Status(Code::kCompute, "nobody answered within a minute");
    }
    return status_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable ready_;
  bool done_ = false;
  Status status_;
};

inline Backend* g_backend = nullptr;
inline cuda::Library g_library;
inline const CancelPtr g_cancel = std::make_shared<CancelToken>();

inline const cuda::Driver& Driver() { return g_library.driver; }
inline void Call(cuda::CUresult result, const char* what) {
  if (result != cuda::CUDA_SUCCESS) {
    Expect(false, std::string(what) + ": " + cuda::ErrorText(Driver(), result));
  }
}

inline StoragePtr New(size_t bytes) {
  StoragePtr storage;
  const Status status = g_backend->Allocate(bytes, &storage);
  if (!status.ok()) {
    // Nothing that follows would say more.
    std::printf("FAILED allocate: %s\n", status.message().c_str());
    std::exit(1);
  }
  return storage;
}

inline void Fill(const StoragePtr& target, const std::vector<float>& values) {
  ExpectOk(g_backend->Write(
               target,
               [values](void* data) -> Status {
                 std::memcpy(data, values.data(), values.size() * sizeof(float));
                 return Status();
               },
               g_cancel),
           "write");
}

inline Status ReadInto(const StoragePtr& source, std::vector<float>* values) {
  Wait wait;
  values->resize(source->bytes() / sizeof(float));
  const Status queued = g_backend->Read(
      source,
      [values, bytes = source->bytes()](const void* data) -> Status {
        std::memcpy(values->data(), data, bytes);
        return Status();
      },
      wait.Done(), g_cancel);
  return queued.ok() ? wait.Get() : queued;
}

inline Status Synchronize() {
  Wait wait;
  const Status queued = g_backend->Synchronize(wait.Done(), g_cancel);
  return queued.ok() ? wait.Get() : queued;
}

inline Status Flush() {
  Wait wait;
  const Status queued = g_backend->Flush(wait.Done(), g_cancel);
  return queued.ok() ? wait.Get() : queued;
}

inline TensorView View(const StoragePtr& storage) {
  TensorView view;
  view.data = storage->data();
  view.rows = 1;
  view.cols = static_cast<int64_t>(storage->bytes() / sizeof(float));
  view.present = true;
  return view;
}

/// target = source, by a kernel.
inline Status Copy(const StoragePtr& source, const StoragePtr& target) {
  return g_backend->Enqueue(CastOp{View(source), View(target)},
                            OpRefs{{source}, {target}, g_cancel});
}

inline std::vector<float> Ramp(size_t count, float from) {
  std::vector<float> values(count);
  for (size_t i = 0; i < count; ++i) values[i] = from + static_cast<float>(i);
  return values;
}

inline cuda::CUstream NewStream() {
  cuda::CUstream stream = nullptr;
  Call(Driver().cuStreamCreate(&stream, cuda::CU_STREAM_NON_BLOCKING), "cuStreamCreate");
  return stream;
}

/// Checks in files of their own.
void GroupedInACapture();
void OptimizerInACapture();

}  // namespace lowrank
