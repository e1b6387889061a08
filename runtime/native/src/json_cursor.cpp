#include "runtime/native/src/json_cursor.h"

#include <algorithm>

#include "runtime/native/src/error.h"

namespace precast {
namespace {

std::string_view kind_of(const JsonValue& value) {
  static constexpr std::string_view kinds[] = {"null",     "a boolean", "an integer", "a number that is not an integer",
                                               "a string", "an array",  "an object"};
  return kinds[value.data.index()];
}

bool is_plain(std::string_view name) {
  const auto plain = [](char c) {
    return c == '_' || (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
  };
  return !name.empty() && std::all_of(name.begin(), name.end(), plain);
}

std::string member_path(const std::string& path, std::string_view name) {
  if (!is_plain(name)) return path + "[" + quote(name) + "]";
  return path.empty() ? std::string(name) : path + "." + std::string(name);
}

template <typename T>
const T& get(const JsonValue& value, const JsonCursor& cursor, std::string_view wanted) {
  if (const T* held = std::get_if<T>(&value.data)) return *held;
  cursor.fail("be " + std::string(wanted) + ", got " + std::string(kind_of(value)));
}

}  // namespace

void JsonCursor::fail(std::string_view requirement) const {
  throw Error(ErrorCode::corrupt_engine,
              *source_ + ": " + (path_.empty() ? "the document" : path_) + " must " + std::string(requirement));
}

std::optional<JsonCursor> JsonCursor::find(std::string_view name) const {
  for (const JsonMember& member : get<JsonValue::Object>(*value_, *this, "an object")) {
    if (member.name == name) return JsonCursor(member.value, *source_, member_path(path_, name));
  }
  return std::nullopt;
}

JsonCursor JsonCursor::at(std::string_view name) const {
  if (std::optional<JsonCursor> member = find(name)) return *std::move(member);
  throw Error(ErrorCode::corrupt_engine, *source_ + ": " + member_path(path_, name) + " is missing");
}

bool JsonCursor::is_null() const noexcept { return std::holds_alternative<std::nullptr_t>(value_->data); }

bool JsonCursor::boolean() const { return get<bool>(*value_, *this, "a boolean"); }

std::int64_t JsonCursor::integer(std::int64_t minimum, std::int64_t maximum) const {
  const std::int64_t value = get<std::int64_t>(*value_, *this, "an integer");
  if (value < minimum) fail("be at least " + std::to_string(minimum) + ", got " + std::to_string(value));
  if (value > maximum) fail("be at most " + std::to_string(maximum) + ", got " + std::to_string(value));
  return value;
}

const std::string& JsonCursor::string() const { return get<std::string>(*value_, *this, "a string"); }

const std::string& JsonCursor::printable_name() const {
  const std::string& text = string();
  const auto printable = [](char c) { return c >= 0x21 && c <= 0x7E; };
  if (text.empty() || !std::all_of(text.begin(), text.end(), printable)) {
    fail("be printable ASCII without spaces, got " + quote(text));
  }
  return text;
}

std::vector<JsonCursor> JsonCursor::elements() const {
  std::vector<JsonCursor> result;
  for (const JsonValue& element : get<JsonValue::Array>(*value_, *this, "an array")) {
    result.push_back(JsonCursor(element, *source_, path_ + "[" + std::to_string(result.size()) + "]"));
  }
  return result;
}

std::vector<JsonCursor::Member> JsonCursor::members() const {
  std::vector<Member> result;
  for (const JsonMember& member : get<JsonValue::Object>(*value_, *this, "an object")) {
    result.push_back({member.name, JsonCursor(member.value, *source_, member_path(path_, member.name))});
  }
  return result;
}

}  // namespace precast
