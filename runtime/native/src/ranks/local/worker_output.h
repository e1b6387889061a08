#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "runtime/native/src/log.h"

namespace precast {

/// Puts bytes together to lines.
class LineSplitter {
 public:
  /// Calls `line` with every line that `bytes` complete, without its end. One that is too long to wait for comes in pieces.
  template <typename Line>
  void add(std::string_view bytes, Line&& line) {
    for (const char c : bytes) {
      if (c != '\n') started_ += c;
      if (c == '\n' || started_.size() == max_bytes) flush(line);
    }
  }

  /// What was begun, if anything was, is a line now.
  template <typename Line>
  void flush(Line&& line) {
    if (!started_.empty()) line(std::string_view(started_));
    started_.clear();
  }

 private:
  static constexpr std::size_t max_bytes = 4096;

  std::string started_;
};

/// A line of a worker's output: a message of its own log, or what else the process has written.
struct OutputLine {
  LogLevel level = LogLevel::warning;  ///< of what is no message: nobody but a library in trouble writes there
  bool is_message = false;
  std::string text;  ///< well-formed UTF-8
};

/// The line of a worker's output that carries a message of its log, with the end of line.
std::string encode_message(LogLevel level, std::string_view text);

/// The opposite, for every line. Bytes that are no UTF-8 are shown as "?".
OutputLine decode_line(std::string_view line);

/// The log of a worker process: writes encoded messages to standard error, which rank 0 reads.
Log worker_log();

}  // namespace precast
