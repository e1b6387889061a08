#pragma once

#include <cstddef>
#include <string_view>

namespace precast {

/// Length in bytes of the well-formed UTF-8 character at the start of `text` (table 3-7 of the Unicode standard),
/// 0 where there is none.
std::size_t utf8_length(std::string_view text) noexcept;

/// Whether `c` is a byte that continues a character, 10xxxxxx.
constexpr bool is_utf8_continuation(char c) noexcept { return (static_cast<unsigned char>(c) & 0xC0U) == 0x80U; }

}  // namespace precast
