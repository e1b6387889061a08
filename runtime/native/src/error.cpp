#include "runtime/native/src/error.h"

#include <system_error>

namespace precast {
namespace {

constexpr std::size_t max_quoted_bytes = 120;

bool is_continuation(char c) { return (static_cast<unsigned char>(c) & 0xC0) == 0x80; }

}  // namespace

std::string quote(std::string_view text) {
  static constexpr std::string_view digits = "0123456789abcdef";
  std::size_t length = text.size();
  if (length > max_quoted_bytes) {
    length = max_quoted_bytes;
    while (length > 0 && is_continuation(text[length])) --length;  // never cut a character of UTF-8 in two
  }
  std::string result = "\"";
  for (const char c : text.substr(0, length)) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      result += {'\\', c};
    } else if (byte < 0x20 || byte == 0x7F) {
      result += {'\\', 'x', digits[byte >> 4], digits[byte & 15]};
    } else {
      result += c;
    }
  }
  return result + (length < text.size() ? "...\"" : "\"");
}

std::string system_message(int error_number) { return std::generic_category().message(error_number); }

}  // namespace precast
