#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <mutex>
#include <string>
#include <thread>
#include <utility>

#include "runtime/native/src/log.h"

namespace precast {

/// Hands messages to a log in a thread of its own, so that whoever has one to give never waits for who reads it. Where that is
/// slow, messages are left out, and counted.
class LogQueue {
 public:
  explicit LogQueue(Log log);
  LogQueue(const LogQueue&) = delete;
  LogQueue& operator=(const LogQueue&) = delete;
  /// Returns when all messages were handed over.
  ~LogQueue();

  void add(LogLevel level, std::string text);

 private:
  static constexpr std::size_t max_messages = 1024;

  void run();

  const Log log_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::pair<LogLevel, std::string>> messages_;
  std::size_t num_left_out_ = 0;
  bool ends_ = false;
  std::thread thread_;
};

}  // namespace precast
