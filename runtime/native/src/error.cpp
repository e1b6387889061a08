#include "runtime/native/src/error.h"

#include <system_error>

#include "runtime/native/src/utf8.h"

namespace precast {
namespace {

constexpr int max_quoted_characters = 120;

std::string hex_escape(unsigned char byte) {
  static constexpr std::string_view digits = "0123456789abcdef";
  return {'\\', 'x', digits[byte >> 4], digits[byte & 15]};
}

}  // namespace

std::string quote(std::string_view text) {
  std::string result = "\"";
  std::string_view rest = text;
  for (int count = 0; !rest.empty(); ++count) {
    if (count == max_quoted_characters) return result + "...\"";
    const std::size_t length = utf8_length(rest);
    const auto first = static_cast<unsigned char>(rest.front());
    if (length == 0 || first < 0x20 || first == 0x7F) {
      result += hex_escape(first);
    } else {
      if (first == '"' || first == '\\') result += '\\';
      result += rest.substr(0, length);
    }
    rest.remove_prefix(length == 0 ? 1 : length);
  }
  return result + '"';
}

std::string system_message(int error_number) { return std::generic_category().message(error_number); }

}  // namespace precast
