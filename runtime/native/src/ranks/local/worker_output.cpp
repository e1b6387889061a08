#include "runtime/native/src/ranks/local/worker_output.h"

#include <unistd.h>

#include <algorithm>

#include "runtime/native/src/utf8.h"

namespace precast {
namespace {

constexpr char message_mark = '\x1e';  // ASCII's record separator: what else is written begins with a letter
constexpr std::size_t pipe_buf = 4096;  // what a pipe takes as a whole or not at all

std::string well_formed(std::string_view bytes) {
  std::string text;
  while (!bytes.empty()) {
    const std::size_t length = utf8_length(bytes);
    text += length != 0 ? bytes.substr(0, length) : "?";
    bytes.remove_prefix(std::max<std::size_t>(length, 1));
  }
  return text;
}

}  // namespace

std::string encode_message(LogLevel level, std::string_view text) {
  std::string line{message_mark, static_cast<char>('0' + static_cast<int>(level))};
  line += text.substr(0, pipe_buf - line.size() - 1);
  std::ranges::replace(line, '\n', ' ');
  return line + '\n';
}

OutputLine decode_line(std::string_view line) {
  if (line.size() >= 2 && line[0] == message_mark && line[1] >= '1' && line[1] <= '3') {
    return {static_cast<LogLevel>(line[1] - '0'), true, well_formed(line.substr(2))};
  }
  if (line.ends_with('\r')) line.remove_suffix(1);
  return {LogLevel::warning, false, well_formed(line)};
}

Log worker_log() {
  return Log([](LogLevel level, const std::string& message) {
    const std::string line = encode_message(level, message);
    // Where rank 0 does not keep up, the pipe is full, and does not block: a message is worth less than the step.
    [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, line.data(), line.size());
  });
}

}  // namespace precast
