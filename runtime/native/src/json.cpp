#include "runtime/native/src/json.h"

#include <algorithm>
#include <charconv>
#include <set>
#include <system_error>
#include <utility>

#include "runtime/native/src/concat.h"
#include "runtime/native/src/error.h"
#include "runtime/native/src/utf8.h"

namespace precast {
namespace {

constexpr bool is_digit(char c) { return c >= '0' && c <= '9'; }
constexpr bool is_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

void append_utf8(std::string& text, std::uint32_t code_point) {
  const auto put = [&](std::uint32_t byte) { text += static_cast<char>(static_cast<unsigned char>(byte)); };
  if (code_point < 0x80) {
    put(code_point);
  } else if (code_point < 0x800) {
    put(0xC0 | (code_point >> 6));
    put(0x80 | (code_point & 0x3F));
  } else if (code_point < 0x10000) {
    put(0xE0 | (code_point >> 12));
    put(0x80 | ((code_point >> 6) & 0x3F));
    put(0x80 | (code_point & 0x3F));
  } else {
    put(0xF0 | (code_point >> 18));
    put(0x80 | ((code_point >> 12) & 0x3F));
    put(0x80 | ((code_point >> 6) & 0x3F));
    put(0x80 | (code_point & 0x3F));
  }
}

/// Recursive descent; the depth limit bounds the stack.
class Parser {
 public:
  Parser(std::string_view text, const std::string& source) : text_(text), source_(source) {}

  JsonValue document() {
    JsonValue value = parse_value(0);
    skip_space();
    if (!at_end()) fail("the end of the document");
    return value;
  }

 private:
  bool at_end() const { return position_ == text_.size(); }
  char peek() const { return at_end() ? '\0' : text_[position_]; }  // a NUL in the text fits no rule either

  bool take(char wanted) {
    if (at_end() || text_[position_] != wanted) return false;
    ++position_;
    return true;
  }

  void skip_space() {
    while (!at_end() && is_space(text_[position_])) ++position_;
  }

  [[noreturn]] void fail_at(std::size_t position, const std::string& complaint) const {
    const std::string_view before = text_.substr(0, position);
    const auto line = std::count(before.begin(), before.end(), '\n') + 1;
    const std::string_view in_line = before.substr(before.rfind('\n') + 1);  // npos + 1 is 0
    const auto starts_character = [](char c) { return !is_utf8_continuation(c); };
    const auto column = std::count_if(in_line.begin(), in_line.end(), starts_character) + 1;
    throw Error(ErrorCode::corrupt_engine, concat(source_, ":", line, ":", column, ": ", complaint));
  }

  [[noreturn]] void fail(const std::string& expected) const {
    const std::string_view rest = text_.substr(position_);
    const std::size_t length = utf8_length(rest);
    const std::string got = rest.empty()  ? "the end of the document"
                            : length == 0 ? "a byte that is not UTF-8"
                                          : quote(rest.substr(0, length));
    fail_at(position_, "expected " + expected + ", got " + got);
  }

  /// `depth`: how many arrays and objects the value is inside of.
  JsonValue parse_value(int depth) {
    skip_space();
    if (depth == max_json_depth && (peek() == '{' || peek() == '[')) {
      fail_at(position_, "nested deeper than " + std::to_string(max_json_depth) + " levels");
    }
    switch (peek()) {
      case '{': return {parse_object(depth)};
      case '[': return {parse_array(depth)};
      case '"': return {parse_string()};
      case 't': return parse_word("true", {true});
      case 'f': return parse_word("false", {false});
      case 'n': return parse_word("null", {nullptr});
      default: break;
    }
    if (peek() == '-' || is_digit(peek())) return parse_number();
    fail("a value");
  }

  JsonValue parse_word(std::string_view word, JsonValue value) {
    if (text_.substr(position_, word.size()) != word) fail("a value");
    position_ += word.size();
    return value;
  }

  JsonValue::Object parse_object(int depth) {
    JsonValue::Object members;
    std::set<std::string> names;
    take('{');
    skip_space();
    if (take('}')) return members;
    do {
      skip_space();
      const std::size_t name_position = position_;
      if (peek() != '"') fail("a member name in double quotes");
      std::string name = parse_string();
      if (!names.insert(name).second) fail_at(name_position, "the member " + quote(name) + " appears twice");
      skip_space();
      if (!take(':')) fail("':' after a member name");
      members.push_back({std::move(name), parse_value(depth + 1)});
      skip_space();
    } while (take(','));
    if (!take('}')) fail("',' or '}' after a member");
    return members;
  }

  JsonValue::Array parse_array(int depth) {
    JsonValue::Array elements;
    take('[');
    skip_space();
    if (take(']')) return elements;
    do {
      elements.push_back(parse_value(depth + 1));
      skip_space();
    } while (take(','));
    if (!take(']')) fail("',' or ']' after an element");
    return elements;
  }

  std::string parse_string() {
    std::string result;
    take('"');
    while (!take('"')) {
      if (take('\\')) {
        parse_escape(result);
        continue;
      }
      const std::size_t length = utf8_length(text_.substr(position_));
      if (length == 0 || static_cast<unsigned char>(text_[position_]) < 0x20) fail("a character of a string or '\"'");
      result.append(text_, position_, length);
      position_ += length;
    }
    return result;
  }

  void parse_escape(std::string& result) {
    static constexpr std::string_view letters = "\"\\/bfnrt";
    static constexpr std::string_view meanings = "\"\\/\b\f\n\r\t";
    if (take('u')) {
      append_utf8(result, parse_code_point());
      return;
    }
    const std::size_t i = at_end() ? std::string_view::npos : letters.find(text_[position_]);
    if (i == std::string_view::npos) fail("one of \" \\ / b f n r t u after '\\'");
    result += meanings[i];
    ++position_;
  }

  std::uint32_t parse_code_point() {
    const std::size_t start = position_;
    const std::uint32_t first = parse_hex4();
    if (first < 0xD800 || first > 0xDFFF) return first;
    if (first <= 0xDBFF && take('\\') && take('u')) {
      const std::uint32_t second = parse_hex4();
      if (second >= 0xDC00 && second <= 0xDFFF) return 0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00);
    }
    fail_at(start, "half of a surrogate pair stands alone");
  }

  std::uint32_t parse_hex4() {
    std::uint32_t value = 0;
    for (int i = 0; i < 4; ++i) {
      const char c = peek();
      std::uint32_t digit = 0;
      if (is_digit(c)) {
        digit = static_cast<std::uint32_t>(c - '0');
      } else if (c >= 'a' && c <= 'f') {
        digit = static_cast<std::uint32_t>(c - 'a') + 10;
      } else if (c >= 'A' && c <= 'F') {
        digit = static_cast<std::uint32_t>(c - 'A') + 10;
      } else {
        fail("four hexadecimal digits after '\\u'");
      }
      value = (value << 4) | digit;
      ++position_;
    }
    return value;
  }

  void skip_digits() {
    if (!is_digit(peek())) fail("a digit");
    while (is_digit(peek())) ++position_;
  }

  JsonValue parse_number() {
    const std::size_t start = position_;
    bool integral = true;
    take('-');
    if (!take('0')) skip_digits();  // so "01" ends after the 0, and the 1 is refused by the caller
    if (take('.')) {
      integral = false;
      skip_digits();
    }
    if (take('e') || take('E')) {
      integral = false;
      if (!take('+')) take('-');
      skip_digits();
    }
    const char* first = text_.data() + start;
    const char* last = text_.data() + position_;
    if (integral) {
      std::int64_t value = 0;
      if (std::from_chars(first, last, value).ec == std::errc()) return {value};
      fail_at(start, "an integer that does not fit into 64 bits");
    }
    double value = 0;
    if (std::from_chars(first, last, value).ec == std::errc()) return {value};
    fail_at(start, "a number that a double cannot hold");
  }

  std::string_view text_;
  const std::string& source_;
  std::size_t position_ = 0;
};

}  // namespace

JsonValue parse_json(std::string_view text, const std::string& source) {
  if (text.size() > max_json_bytes) {
    throw Error(ErrorCode::corrupt_engine,
                concat(source, ": ", text.size(), " bytes, the limit is ", max_json_bytes));
  }
  return Parser(text, source).document();
}

}  // namespace precast
