#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>

namespace precast {

/// What went wrong, in numbers that never change: they are the PRECAST_ERROR_* of precast.h.
enum class ErrorCode : std::int32_t {
  invalid_argument = 1,
  not_found = 2,
  io = 3,
  corrupt_engine = 4,
  unsupported_engine = 5,
  onnxruntime = 6,
  resource_exhausted = 7,
  shut_down = 8,
  internal = 9,
  forked = 10,
  rank_failed = 11,
};

/// The only exception that the library throws on purpose. The message is one sentence that names the culprit, the
/// values and what to do.
class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}

  ErrorCode code() const noexcept { return code_; }

 private:
  ErrorCode code_;
};

/// `text` in double quotes, for a message: quotes, backslashes, control characters and bytes that are not UTF-8 are
/// escaped, long text is cut. For names that come from files, which may hold anything.
std::string quote(std::string_view text);

/// The system's text for an `errno` value, e.g. "Permission denied". Safe on any thread.
std::string system_message(int error_number);

}  // namespace precast
