/// The host's side of devices, below JavaScript. With names of devices: in a child of fork(), which
/// has none of their threads, every queued call fails at once and says why, nothing hangs, and what
/// the parent had not started works, as does the memory of a host device and what runs on the
/// caller's thread. With the word cores and folders that stand for the root: how many
/// cores are usable there.
#include <sys/wait.h>
#include <unistd.h>

#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <mutex>
#include <string>
#include <vector>

#include "native/core/runtime/registry.h"
#include "native/cpu/usable_cores.h"

namespace lowrank {
namespace {

constexpr unsigned kChildSeconds = 20;
constexpr size_t kCount = 64;

int g_failures = 0;

void Expect(bool right, const std::string& what) {
  if (right) return;
  std::printf("FAILED %s\n", what.c_str());
  std::fflush(stdout);
  ++g_failures;
}

/// Waits for one DoneFn; the child's alarm ends a wait for ever.
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
    ready_.wait(lock, [this] { return done_; });
    return status_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable ready_;
  bool done_ = false;
  Status status_;
};

TensorView View(const StoragePtr& storage) {
  TensorView view;
  view.data = storage->data();
  view.rows = 1;
  view.cols = static_cast<int64_t>(storage->bytes() / sizeof(float));
  view.present = true;
  return view;
}

Status Copy(Backend* backend, const StoragePtr& x, const StoragePtr& y, const CancelPtr& cancel) {
  return backend->Enqueue(CastOp{View(x), View(y)}, OpRefs{{x}, {y}, cancel});
}

Status Read(Backend* backend, const StoragePtr& source, float* first, const CancelPtr& cancel) {
  Wait wait;
  const Status queued = backend->Read(
      source,
      [first](const void* data) -> Status {
        std::memcpy(first, data, sizeof(float));
        return Status();
      },
      wait.Done(), cancel);
  return queued.ok() ? wait.Get() : queued;
}

/// A tensor of the device filled with `value`, through a kernel.
Status Filled(Backend* backend, float value, const CancelPtr& cancel, StoragePtr* y) {
  StoragePtr x;
  LOWRANK_RETURN_IF_ERROR(backend->Allocate(kCount * sizeof(float), &x));
  LOWRANK_RETURN_IF_ERROR(backend->Allocate(kCount * sizeof(float), y));
  LOWRANK_RETURN_IF_ERROR(backend->Write(
      x,
      [value](void* data) -> Status {
        for (size_t i = 0; i < kCount; ++i) static_cast<float*>(data)[i] = value;
        return Status();
      },
      cancel));
  return Copy(backend, x, *y, cancel);
}

void ExpectWorks(const std::string& device, const CancelPtr& cancel, const std::string& where) {
  Backend* backend = nullptr;
  StoragePtr y;
  Status status = FindBackend(device, &backend);
  if (status.ok()) status = Filled(backend, 3, cancel, &y);
  float first = 0;
  if (status.ok()) status = Read(backend, y, &first, cancel);
  Expect(status.ok() && first == 3, device + " " + where + ": " + status.message());
}

/// Runs `body` in a child that is ended where it hangs; its failures are those of this program.
void InChild(const std::string& what, const std::function<void()>& body) {
  std::fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    alarm(kChildSeconds);
    g_failures = 0;
    body();
    std::fflush(stdout);
    _exit(g_failures == 0 ? 0 : 1);
  }
  int ended = 0;
  waitpid(child, &ended, 0);
  Expect(WIFEXITED(ended) && WEXITSTATUS(ended) == 0,
         what + (WIFSIGNALED(ended) ? ": ended by signal " + std::to_string(WTERMSIG(ended)) : ""));
}

void ExpectRefused(const Status& status, const std::string& call) {
  Expect(status.code() == Code::kDevice && status.message().find("forked") != std::string::npos,
         call + " in a child: " + (status.ok() ? "worked" : status.message()));
}

/// Ops on this thread, in the memory of a host device: no queue is needed.
void ExpectRunsNow(Backend* backend, const std::string& where) {
  StoragePtr x;
  StoragePtr y;
  Expect(backend->ReadyNow().ok(), where + ": ready");
  const int64_t before = backend->Memory().live_bytes;
  Expect(backend->Allocate(kCount * sizeof(float), &x).ok() &&
             backend->Allocate(kCount * sizeof(float), &y).ok(),
         where + ": memory");
  if (!x || !y) return;
  for (size_t i = 0; i < kCount; ++i) static_cast<float*>(x->data())[i] = static_cast<float>(i);
  const Status status = backend->RunNow(CastOp{View(x), View(y)}, nullptr);
  Expect(status.ok() && std::memcmp(x->data(), y->data(), x->bytes()) == 0,
         where + ": " + status.message());
  const Status wrong = backend->RunNow(CastOp{View(x), View(x)}, nullptr);
  Expect(wrong.code() == Code::kAlias, where + ": in place: " + wrong.message());
  const Status stream = backend->RunNow(CastOp{View(x), View(y)}, &x);
  Expect(stream.code() == Code::kUnsupported, where + ": a stream: " + stream.message());
  x.reset();
  y.reset();
  Expect(backend->Memory().live_bytes == before, where + ": memory is freed");
}

/// The same where the host cannot touch the memory: RunNow waits for the device, and what a kernel
/// refuses is told to this call alone.
void ExpectRunsNowElsewhere(Backend* backend, const CancelPtr& cancel) {
  StoragePtr x;
  StoragePtr y;
  Expect(Filled(backend, 2, cancel, &x).ok() && backend->Allocate(x->bytes(), &y).ok(), "memory");
  const Status status = backend->RunNow(CastOp{View(x), View(y)}, nullptr);
  float first = 0;
  Expect(status.ok() && Read(backend, y, &first, cancel).ok() && first == 2,
         "RunNow on " + backend->name() + ": " + status.message());
  const Status wrong = backend->RunNow(CastOp{View(x), View(x)}, nullptr);
  Expect(wrong.code() == Code::kAlias, "in place: " + wrong.message());
  // A weight with a NaN, which only the kernel sees.
  StoragePtr codes;
  StoragePtr table;
  StoragePtr absmax;
  StoragePtr bad;
  QuantizeOp op;
  op.w = View(x);
  op.out.format = FindFormat("nf4");
  op.out.rows = 1;
  op.out.cols = static_cast<int64_t>(kCount);
  op.out.blocksize = 64;
  Expect(backend->Allocate(kCount / 2, &codes).ok() && backend->Allocate(64, &table).ok() &&
             backend->Allocate(sizeof(float), &absmax).ok() &&
             Filled(backend, std::numeric_limits<float>::quiet_NaN(), cancel, &bad).ok(),
         "memory");
  Expect(backend
             ->Write(
                 table,
                 [&op](void* data) -> Status {
                   std::memcpy(data, op.out.format->codebook, 64);
                   return Status();
                 },
                 cancel)
             .ok(),
         "write");
  op.out.codes = static_cast<uint8_t*>(codes->data());
  op.out.codebook = static_cast<const float*>(table->data());
  op.out.absmax = static_cast<float*>(absmax->data());
  const Status good = backend->RunNow(op, nullptr);
  Expect(good.ok(), "quantize: " + good.message());
  op.w = View(bad);
  const Status refused = backend->RunNow(op, nullptr);
  Expect(refused.code() == Code::kNonFinite, "a NaN: " + refused.message());
  op.w = View(x);
  Expect(backend->RunNow(op, nullptr).ok(), "after a NaN");
}

/// An op on this thread comes after what was queued.
void ExpectInOrder(Backend* backend, const CancelPtr& cancel) {
  StoragePtr x;
  StoragePtr y;
  StoragePtr z;
  Expect(Filled(backend, 1, cancel, &x).ok() && backend->Allocate(x->bytes(), &y).ok() &&
             backend->Allocate(x->bytes(), &z).ok(),
         "memory");
  for (int round = 1; round <= 200; ++round) {
    const auto value = static_cast<float>(round);
    Expect(backend
               ->Write(
                   x,
                   [value](void* data) -> Status {
                     for (size_t i = 0; i < kCount; ++i) static_cast<float*>(data)[i] = value;
                     return Status();
                   },
                   cancel)
               .ok(),
           "write");
    Expect(Copy(backend, x, y, cancel).ok(), "queue");
    const Status status = backend->RunNow(CastOp{View(y), View(z)}, nullptr);
    const float got = static_cast<const float*>(z->data())[kCount - 1];
    Expect(status.ok() && got == value, "in order: " + std::to_string(got) + status.message());
  }
}

void ForkedAfterTheStart(const std::string& device) {
  const auto cancel = std::make_shared<CancelToken>();
  ExpectWorks(device, cancel, "before a fork");
  Backend* backend = nullptr;
  if (!FindBackend(device, &backend).ok()) return;
  if (backend->HostAddressable()) {
    ExpectRunsNow(backend, device);
    ExpectInOrder(backend, cancel);
  } else {
    ExpectRunsNowElsewhere(backend, cancel);
  }
  StoragePtr x;
  StoragePtr y;
  Expect(Filled(backend, 5, cancel, &x).ok() && Filled(backend, 6, cancel, &y).ok(), device);
  // Something is queued, and something runs, when the process is forked.
  std::mutex gate;
  gate.lock();
  const auto slow = [&gate](void*) -> Status {
    const std::lock_guard<std::mutex> passed(gate);
    return Status();
  };
  StoragePtr z;
  Expect(backend->Allocate(kCount * sizeof(float), &z).ok(), "allocate");
  Expect(backend->Write(z, slow, cancel).ok() && Copy(backend, x, y, cancel).ok(), "queue");
  InChild("a child of a process that had started '" + device + "'", [&] {
    StoragePtr fresh;
    float first = 0;
    Wait ignored;
    Backend* found = nullptr;
    ExpectRefused(FindBackend(device, &found), "FindBackend");
    if (backend->HostAddressable()) {
      ExpectRunsNow(backend, device + " in a child");
    } else {
      ExpectRefused(backend->Allocate(16, &fresh), "Allocate");
    }
    ExpectRefused(Copy(backend, x, y, cancel), "an op");
    ExpectRefused(Read(backend, x, &first, cancel), "Read");
    ExpectRefused(backend->Write(x, slow, cancel), "Write");
    ExpectRefused(backend->Synchronize(ignored.Done(), cancel), "Synchronize");
    ExpectRefused(backend->Flush(ignored.Done(), cancel), "Flush");
    ExpectRefused(backend->ReserveWorkspace(64, ignored.Done(), cancel), "ReserveWorkspace");
    Expect(!backend->Info().available && !backend->Info().reason.empty(), "the list says why");
    backend->Memory();
    backend->ResetPeak();
    x.reset();
    y.reset();
    // The end of an environment, with the parent's work counted as in flight.
    cancel->Cancel();
    DropQueued(cancel.get());
    cancel->WaitIdle();
    ExpectWorks("reference", std::make_shared<CancelToken>(), "in a child that starts it");
    InChild("a grandchild", [&] {
      ExpectRefused(FindBackend(device, &found), "FindBackend");
      if (backend->HostAddressable()) ExpectRunsNow(backend, device + " in a grandchild");
    });
  });
  gate.unlock();
  float first = 0;
  const Status status = Read(backend, y, &first, cancel);
  Expect(status.ok() && first == 5, device + " goes on in the parent: " + status.message());
  cancel->WaitIdle();
}

}  // namespace

int CheckHost(const std::vector<std::string>& devices) {
  for (const std::string& device : devices) {
    InChild("a fork before the start", [&] {
      ExpectWorks(device, std::make_shared<CancelToken>(), "in a child that starts it");
    });
    ForkedAfterTheStart(device);
  }
  std::printf(g_failures == 0 ? "the devices hold\n" : "%d failures\n", g_failures);
  return g_failures == 0 ? 0 : 1;
}

}  // namespace lowrank

int main(int argc, char** argv) {
  if (argc > 1 && std::strcmp(argv[1], "cores") == 0) {
    for (int i = 2; i < argc; ++i) std::printf("%d\n", lowrank::cpu::UsableCores(argv[i]));
    return 0;
  }
  return lowrank::CheckHost(std::vector<std::string>(argv + 1, argv + argc));
}
