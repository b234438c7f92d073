#include "native/core/backend.h"

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
  } else {
    backend_->Free(data_, bytes_);
  }
}

void Storage::Poison(const Status& status) {
  std::lock_guard<std::mutex> lock(mutex_);
  status_ = status;
  poisoned_.store(!status.ok(), std::memory_order_release);
}

void Storage::ClearPoison() {
  if (poisoned_.load(std::memory_order_acquire)) Poison(Status());
}

Status Storage::poison() const {
  if (!poisoned_.load(std::memory_order_acquire)) return Status();
  std::lock_guard<std::mutex> lock(mutex_);
  return status_;
}

void CancelToken::Begin() {
  std::lock_guard<std::mutex> lock(mutex_);
  ++in_flight_;
}

void CancelToken::End() {
  std::lock_guard<std::mutex> lock(mutex_);
  if (--in_flight_ == 0) idle_.notify_all();
}

void CancelToken::WaitIdle() {
  std::unique_lock<std::mutex> lock(mutex_);
  idle_.wait(lock, [this] { return in_flight_ == 0; });
}

}  // namespace lowrank
