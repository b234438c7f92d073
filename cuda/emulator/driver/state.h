/// The objects behind the driver's handles, and the one table of each kind.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "cuda/emulator/driver/capture.h"
#include "cuda/emulator/driver/device_model.h"
#include "cuda/emulator/driver/memory.h"
#include "cuda/emulator/driver/stream.h"
#include "cuda/emulator/runtime.h"
#include "native/cuda/driver/driver.h"

namespace lowrank::emu::driver {

/// Live handles of one kind. A handle is a number that is never used twice, so that one which was
/// destroyed, or never was, is told from a live one.
template <typename Handle, typename T>
class HandleTable {
 public:
  Handle Add(std::shared_ptr<T> object) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const uintptr_t id = next_ += 16;
    objects_[id] = std::move(object);
    return reinterpret_cast<Handle>(id);
  }
  std::shared_ptr<T> Find(Handle handle) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = objects_.find(reinterpret_cast<uintptr_t>(handle));
    return found == objects_.end() ? nullptr : found->second;
  }
  std::shared_ptr<T> Remove(Handle handle) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = objects_.find(reinterpret_cast<uintptr_t>(handle));
    if (found == objects_.end()) return nullptr;
    std::shared_ptr<T> object = std::move(found->second);
    objects_.erase(found);
    return object;
  }
  /// Those for which `gone` holds.
  template <typename Predicate>
  void RemoveIf(Predicate gone) {
    std::vector<std::shared_ptr<T>> removed;  // destroyed outside the lock
    const std::lock_guard<std::mutex> lock(mutex_);
    for (auto it = objects_.begin(); it != objects_.end();) {
      if (gone(*it->second)) {
        removed.push_back(std::move(it->second));
        it = objects_.erase(it);
      } else {
        ++it;
      }
    }
  }

 private:
  std::mutex mutex_;
  uintptr_t next_ = 0x1000;
  std::unordered_map<uintptr_t, std::shared_ptr<T>> objects_;
};

/// A primary context.
struct Context {
  int device = 0;
  DeviceModel model{};
  std::shared_ptr<Memory> memory;
  std::shared_ptr<StreamSet> streams = std::make_shared<StreamSet>();
  std::atomic<bool> destroyed{false};
};
using ContextPtr = std::shared_ptr<Context>;

struct Function;
struct Module {
  ContextPtr context;
  std::mutex mutex;
  std::unordered_map<std::string, cuda::CUfunction> functions;
};
using ModulePtr = std::shared_ptr<Module>;

struct Function {
  const Kernel* kernel = nullptr;
  std::weak_ptr<Module> module;
  ContextPtr context;
  std::atomic<int> max_dynamic_shared{0};
};
using FunctionPtr = std::shared_ptr<Function>;

struct Event {
  ContextPtr context;
  bool timing = true;
  std::mutex mutex;
  RecordingPtr recording;  // null: never recorded, or recorded in a capture
  std::weak_ptr<Capture> capture;
  bool captured = false;
  std::vector<size_t> nodes;  // of the capture
};
using EventPtr = std::shared_ptr<Event>;

struct StreamObject {
  ContextPtr context;
  StreamPtr stream;
};
struct PoolObject {
  ContextPtr context;
  PoolPtr pool;
};
struct GraphObject {
  ContextPtr context;
  GraphPtr graph;
};

struct Device {
  int ordinal = 0;
  std::mutex mutex;
  int retained = 0;
  ContextPtr primary;  // while retained
  cuda::CUcontext handle = nullptr;
  cuda::CUmemoryPool default_pool = nullptr;
};

/// Everything there is. Made at the first use, never destroyed.
class State {
 public:
  static State& Get();

  /// cuInit, as often as one likes.
  int Init();
  bool initialised() const { return initialised_.load(std::memory_order_acquire); }
  Device* FindDevice(int ordinal);
  int device_count() const { return device_count_; }

  int Retain(Device* device, cuda::CUcontext* context);
  /// One reference, or with `all` every one of them. The last ends the context.
  int Release(Device* device, bool all);

  HandleTable<cuda::CUcontext, Context> contexts;
  HandleTable<cuda::CUmodule, Module> modules;
  HandleTable<cuda::CUfunction, Function> functions;
  HandleTable<cuda::CUstream, StreamObject> streams;
  HandleTable<cuda::CUevent, Event> events;
  HandleTable<cuda::CUmemoryPool, PoolObject> pools;
  HandleTable<cuda::CUgraph, GraphObject> graphs;
  HandleTable<cuda::CUgraphExec, GraphObject> graph_execs;

 private:
  State() = default;
  void End(const ContextPtr& context);

  static constexpr int kMaxDevices = 8;
  std::mutex mutex_;
  std::atomic<bool> initialised_{false};
  int device_count_ = 0;
  Device devices_[kMaxDevices];
};

/// Bytes that each device has.
size_t MemoryOfDevice();

/// The contexts pushed by this thread; the last is current. Never empty of room.
std::vector<cuda::CUcontext>& ContextStack();

/// The start of a call: initialised, not inside a host function.
int EnterDriver();
/// The same, with a current context that has not failed. The context is set where one is current,
/// also when the result is its failure: what frees something still does.
int EnterContext(ContextPtr* context);

/// The stream of a handle: 0 and 1 are the legacy null stream of `context`, 2 this thread's own.
/// CUDA_ERROR_INVALID_HANDLE, or INVALID_CONTEXT for a stream of another context.
int FindStream(cuda::CUstream handle, const ContextPtr& context, StreamPtr* stream);
/// EnterContext(), and a stream of that context.
int EnterStream(cuda::CUstream handle, ContextPtr* context, StreamPtr* stream);

/// Queues work, or writes it into the capture that the stream takes part in.
int Submit(const ContextPtr& context, const StreamPtr& stream, NodeKind kind, Work work);

/// Calls that may wait for the device, or that a capture does not see, are not possible during
/// captures of some modes, unless this thread has said that it knows (ThreadCaptureMode). They
/// spoil those captures.
int RefuseDuringCapture();
/// Is a blocking stream of this context captured (which forbids the null stream)? Spoils it.
bool NullStreamWouldJoinCapture(const ContextPtr& context);

}  // namespace lowrank::emu::driver
