#include "runtime/native/src/ranks/log_queue.h"

namespace precast {

LogQueue::LogQueue(Log log) : log_(std::move(log)), thread_(&LogQueue::run, this) {}

LogQueue::~LogQueue() {
  {
    const std::lock_guard lock(mutex_);
    ends_ = true;
  }
  changed_.notify_one();
  thread_.join();
}

void LogQueue::add(LogLevel level, std::string text) {
  {
    const std::lock_guard lock(mutex_);
    if (messages_.size() == max_messages) {
      ++num_left_out_;
      return;
    }
    messages_.emplace_back(level, std::move(text));
  }
  changed_.notify_one();
}

void LogQueue::run() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [&] { return ends_ || !messages_.empty(); });
    if (messages_.empty()) return;
    const auto [level, text] = std::move(messages_.front());
    messages_.pop_front();
    const std::size_t num_left_out = messages_.empty() ? std::exchange(num_left_out_, 0) : 0;
    lock.unlock();
    log_.write(level, text);
    if (num_left_out != 0) log_.warning(num_left_out, " more lines of the ranks' output were left out: they came too fast");
    lock.lock();
  }
}

}  // namespace precast
