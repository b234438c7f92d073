#include "native/cuda/streams/completion.h"

#include <cstring>
#include <exception>
#include <new>
#include <utility>

#include "native/core/runtime/float_mode.h"
#include "native/core/runtime/spin.h"
#include "native/core/runtime/trace.h"

namespace lowrank::cuda {
namespace {

/// How often the event is queried before the thread sleeps: a small read is over by then.
constexpr int kQueries = 50;

}  // namespace

Completions::Completions(Context* context, Staging* staging)
    : context_(*context), staging_(*staging) {}

Status Completions::Start() {
  std::unique_lock<std::mutex> lock(mutex_);
  if (!thread_.joinable()) thread_ = std::thread([this] { Loop(); });
  attach_asked_ = true;
  wake_.notify_one();
  attached_.wait(lock, [this] { return !attach_asked_; });
  return attach_status_;
}

Status Completions::TakeEvent(bool timing, CUevent* event) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::vector<CUevent>& free = free_events_[timing ? 1 : 0];
    if (!free.empty()) {
      *event = free.back();
      free.pop_back();
      return Status();
    }
  }
  const unsigned flags =
      timing ? CU_EVENT_DEFAULT : CU_EVENT_DISABLE_TIMING | CU_EVENT_BLOCKING_SYNC;
  return context_.Check(context_.driver().cuEventCreate(event, flags), "cuEventCreate");
}

void Completions::ReturnEvent(bool timing, CUevent event) {
  if (event == nullptr) return;
  try {
    const std::lock_guard<std::mutex> lock(mutex_);
    free_events_[timing ? 1 : 0].push_back(event);
  } catch (const std::bad_alloc&) {
    context_.driver().cuEventDestroy_v2(event);
  }
}

void Completions::Push(std::unique_ptr<Completion> completion) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    Completion* const raw = completion.get();
    if (first_ == nullptr) {
      first_ = std::move(completion);
    } else {
      last_->next = std::move(completion);
    }
    last_ = raw;
    pending_.fetch_add(1, std::memory_order_release);
  }
  wake_.notify_one();
}

void Completions::Abandon(std::unique_ptr<Completion> completion) {
  if (completion) GiveBack(completion.get(), completion->stream == nullptr);
}

void Completions::DropQueued(const CancelToken* cancel) {
  // Entries stay in place because their copies are under way. Under the lock, like the queue's.
  const std::lock_guard<std::mutex> lock(mutex_);
  const Status status =
      Status::Bare(Code::kCancelled, context_.device().c_str(), "the environment is closing");
  for (Completion* entry = first_.get(); entry != nullptr; entry = entry->next.get()) {
    if (entry->cancel.get() != cancel || !entry->keep.empty()) continue;
    const CancelPtr token = std::exchange(entry->cancel, nullptr);
    entry->sink = nullptr;
    const DoneFn done = std::exchange(entry->done, nullptr);
    if (done) done(status);
    token->End();
  }
}

void Completions::Loop() {
  SetDefaultFloatMode();
  for (;;) {
    SpinUntil([&] { return pending_.load(std::memory_order_acquire) != 0; });
    CUevent event = nullptr;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [this] { return first_ != nullptr || attach_asked_; });
      if (attach_asked_) {
        attach_status_ = context_.Attach();
        attach_asked_ = false;
        attached_.notify_all();
        continue;
      }
      event = first_->event;
    }
    const Status passed = Await(event);
    std::unique_ptr<Completion> entry;
    {
      // Only from here on DropQueued cannot reach it.
      const std::lock_guard<std::mutex> lock(mutex_);
      entry = std::move(first_);
      first_ = std::move(entry->next);
      if (first_ == nullptr) last_ = nullptr;
      pending_.fetch_sub(1, std::memory_order_release);
    }
    Finish(std::move(entry), passed);
  }
}

Status Completions::Await(CUevent event) {
  LOWRANK_RETURN_IF_ERROR(context_.lost());
  const Driver& driver = context_.driver();
  for (int query = 0; query < kQueries; ++query) {
    const CUresult result = driver.cuEventQuery(event);
    if (result != CUDA_ERROR_NOT_READY) return context_.Check(result, "cuEventQuery");
    Pause();
  }
  return context_.Check(driver.cuEventSynchronize(event), "cuEventSynchronize");
}

Status Completions::Judge(const Completion& completion, const Status& passed) {
  LOWRANK_RETURN_IF_ERROR(passed);
  for (const VerdictPtr& verdict : completion.depends) LOWRANK_RETURN_IF_ERROR(verdict->status());
  if (completion.sink) return completion.sink(completion.staging.data);
  if (completion.verdict == nullptr) return Status();
  int64_t index = 0;
  std::memcpy(&index, completion.staging.data, sizeof(index));
  if (index >= Plan::kNoneFound) return Status();
  if (completion.documents_op != nullptr) {
    const int64_t entry = index >> 32;
    const int64_t row = entry % completion.document_rows;
    return Refuse(Code::kValue, completion.documents_op, "documents[" + std::to_string(entry) + "]",
                  std::to_string(row) + (row == 0 ? "" : " or the entry before it"),
                  std::to_string(static_cast<int32_t>(index)));
  }
  if (completion.finite_in_f16) {
    return Refuse(Code::kNonFinite, QuantizeOp::kName, "w", "finite in f16 (the weight is rowwise)",
                  "Inf or NaN at element " + std::to_string(index));
  }
  return Refuse(Code::kNonFinite, QuantizeOp::kName, "w[" + std::to_string(index) + "]", "finite",
                "NaN or infinity");
}

void Completions::Finish(std::unique_ptr<Completion> completion, const Status& passed) {
  Status status = passed;
  if (passed.ok()) context_.ops().Passed(completion->op_number);
  // No exception may leave this thread.
  try {
    status = Judge(*completion, passed);
    if (status.ok() && !completion->description.empty()) {
      float milliseconds = 0;
      status = context_.Check(context_.driver().cuEventElapsedTime(
                                  &milliseconds, completion->trace_begin, completion->trace_end),
                              "cuEventElapsedTime");
      if (status.ok()) {
        TraceOp(context_.device().c_str(), completion->description, 1000.0 * milliseconds);
      }
    }
  } catch (const std::bad_alloc&) {
    status = Status::Bare(Code::kOom, context_.device().c_str(), "out of host memory");
  } catch (const std::exception& error) {
    status = Status::Bare(Code::kCompute, context_.device().c_str(), error.what());
  }
  if (completion->verdict != nullptr) completion->verdict->Settle(status);
  // What it used is released before anyone is notified, so that counters are exact by then.
  GiveBack(completion.get(), passed.ok());
  completion->keep.clear();
  if (completion->done) completion->done(status);
  completion->done = nullptr;
  if (completion->cancel) completion->cancel->End();
}

void Completions::GiveBack(Completion* completion, bool reusable) {
  StagingBlock block = std::exchange(completion->staging, StagingBlock());
  if (reusable) {
    staging_.Release(block);
    ReturnEvent(false, std::exchange(completion->event, nullptr));
  } else {
    // The copy may still be under way: its memory is released by a call that waits for it.
    staging_.Retire(block, completion->stream);
    if (completion->event != nullptr) context_.driver().cuEventDestroy_v2(completion->event);
    completion->event = nullptr;
  }
  ReturnEvent(true, std::exchange(completion->trace_begin, nullptr));
  ReturnEvent(true, std::exchange(completion->trace_end, nullptr));
}

}  // namespace lowrank::cuda
