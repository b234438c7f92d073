#include "native/core/runtime/backend.h"

namespace lowrank {

std::shared_ptr<Storage> Storage::Foreign(Backend* backend, void* data, size_t bytes,
                                          std::function<void()> release) {
  auto storage = std::make_shared<Storage>(backend, data, bytes);
  storage->release_ = std::move(release);
  return storage;
}

Storage::~Storage() {
  if (release_) {
    release_();
    return;
  }
  backend_->Free(data_, bytes_);
  if (waiter_ != std::thread::id()) {
    backend_->CountWaiting(waiter_, -static_cast<int64_t>(bytes_));
  }
}

void Storage::DropHandle() {
  if (handles_.fetch_sub(1, std::memory_order_relaxed) > 1 || release_) return;
  waiter_ = std::this_thread::get_id();
  backend_->CountWaiting(waiter_, static_cast<int64_t>(bytes_));
}

Status Backend::BeginRecording(RecordingPtr* recording) {
  recording->reset();
  return Refuse(Code::kUnsupported, "captureStep", "device", "a CUDA device", name());
}

void Verdict::Settle(const Status& status) {
  status_ = status;
  settled_.store(true, std::memory_order_release);
}

Status Verdict::status() const { return settled() ? status_ : Status(); }

void Storage::Poison(const Status& status) {
  std::lock_guard<std::mutex> lock(mutex_);
  status_ = status;
  verdicts_.clear();
  suspect_.store(!status.ok(), std::memory_order_release);
}

void Storage::ClearPoison() {
  if (suspect_.load(std::memory_order_acquire)) Poison(Status());
}

Status Storage::poison() const {
  if (!suspect_.load(std::memory_order_acquire)) return Status();
  std::lock_guard<std::mutex> lock(mutex_);
  LOWRANK_RETURN_IF_ERROR(status_);
  for (const VerdictPtr& verdict : verdicts_) LOWRANK_RETURN_IF_ERROR(verdict->status());
  return Status();
}

void Storage::DependOn(const std::vector<VerdictPtr>& verdicts) {
  if (verdicts.empty()) return;
  std::lock_guard<std::mutex> lock(mutex_);
  verdicts_.insert(verdicts_.end(), verdicts.begin(), verdicts.end());
  suspect_.store(true, std::memory_order_release);
}

std::vector<VerdictPtr> Storage::OpenVerdicts() const {
  std::vector<VerdictPtr> open;
  if (!suspect_.load(std::memory_order_acquire)) return open;
  std::lock_guard<std::mutex> lock(mutex_);
  for (const VerdictPtr& verdict : verdicts_) {
    if (!verdict->settled() || !verdict->status().ok()) open.push_back(verdict);
  }
  return open;
}

void CancelToken::Begin() {
  std::lock_guard<std::mutex> lock(mutex_);
  if (counted_in_.orphaned()) {
    counted_in_ = ForkMark();
    in_flight_ = 0;
  }
  ++in_flight_;
}

void CancelToken::End() {
  std::lock_guard<std::mutex> lock(mutex_);
  if (--in_flight_ == 0) idle_.notify_all();
}

void CancelToken::WaitIdle() {
  if (counted_in_.orphaned()) return;
  std::unique_lock<std::mutex> lock(mutex_);
  idle_.wait(lock, [this] { return in_flight_ == 0; });
}

}  // namespace lowrank
