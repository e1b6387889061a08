#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <utility>

#include "runtime/native/src/concat.h"

namespace precast {

/// precast_log_level_t.
enum class LogLevel : std::uint32_t { info = 1, warning = 2, error = 3 };

/// Where an engine says what its operator should know; nowhere by default. Callable from any thread, never under a lock.
class Log {
 public:
  using Write = std::function<void(LogLevel, const std::string&)>;

  Log() = default;
  explicit Log(Write write) : write_(std::move(write)) {}

  /// Whether anybody reads it.
  explicit operator bool() const noexcept { return static_cast<bool>(write_); }

  void write(LogLevel level, const std::string& message) const {
    if (write_) write_(level, message);
  }

  template <typename... Parts>
  void info(const Parts&... parts) const {
    if (write_) write_(LogLevel::info, concat(parts...));
  }
  template <typename... Parts>
  void warning(const Parts&... parts) const {
    if (write_) write_(LogLevel::warning, concat(parts...));
  }
  template <typename... Parts>
  void error(const Parts&... parts) const {
    if (write_) write_(LogLevel::error, concat(parts...));
  }

 private:
  Write write_;
};

}  // namespace precast
