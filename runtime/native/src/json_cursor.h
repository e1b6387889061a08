#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "runtime/native/src/json.h"

namespace precast {

/// A JSON value and its place in the document, so that a complaint can name it: "source: model.vocab_size must be an
/// integer, got a string". Every accessor throws Error(corrupt_engine). Refers to the document, which must outlive it.
class JsonCursor {
 public:
  JsonCursor(const JsonValue& document, const std::string& source) : value_(&document), source_(&source) {}
  JsonCursor(JsonValue&&, const std::string&) = delete;  // a temporary would not outlive it

  /// A member that must exist.
  JsonCursor at(std::string_view name) const;
  /// A member that may be absent.
  std::optional<JsonCursor> find(std::string_view name) const;

  bool is_null() const noexcept;
  bool boolean() const;
  std::int64_t integer(std::int64_t minimum = std::numeric_limits<std::int64_t>::min(),
                       std::int64_t maximum = std::numeric_limits<std::int64_t>::max()) const;
  const std::string& string() const;
  /// One or more ASCII characters from '!' to '~'.
  const std::string& printable_name() const;
  std::vector<JsonCursor> elements() const;

  struct Member;
  std::vector<Member> members() const;

  /// Throws "source: path must <requirement>".
  [[noreturn]] void fail(std::string_view requirement) const;
  const std::string& path() const noexcept { return path_; }

 private:
  JsonCursor(const JsonValue& value, const std::string& source, std::string path)
      : value_(&value), source_(&source), path_(std::move(path)) {}

  const JsonValue* value_;
  const std::string* source_;
  std::string path_;  // e.g. "ranks[0].graph"; empty for the document
};

struct JsonCursor::Member {
  std::string_view name;
  JsonCursor value;
};

}  // namespace precast
