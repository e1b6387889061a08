// A small, strict reader of JSON (RFC 8259), for documents that come from files nobody vouches for. Refused beyond the
// RFC's own rules: duplicate member names, integers outside int64, numbers that are infinite or vanish as a double,
// more than 32 levels, more than 16 MiB.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace precast {

struct JsonMember;

struct JsonValue {
  using Array = std::vector<JsonValue>;
  using Object = std::vector<JsonMember>;  // in the document's order; names are distinct

  std::variant<std::nullptr_t, bool, std::int64_t, double, std::string, Array, Object> data;
};

struct JsonMember {
  std::string name;
  JsonValue value;
};

inline constexpr std::size_t max_json_bytes = std::size_t{16} << 20;
inline constexpr int max_json_depth = 32;

/// Reads one document, all of `text`. Throws Error(corrupt_engine): "source:line:column: expected ..., got ...".
JsonValue parse_json(std::string_view text, const std::string& source);

}  // namespace precast
