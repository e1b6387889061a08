#pragma once

#include <concepts>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace precast {

/// A value that is JSON text already.
struct RawJson {
  std::string text;
};

/// Writes one JSON object: what the C API reports to its callers. Objects within it are written first, as RawJson.
class JsonWriter {
 public:
  template <typename T>
  JsonWriter& add(std::string_view name, const T& value) {
    text_ += text_.empty() ? "{" : ", ";
    write(name);
    text_ += ": ";
    write(value);
    return *this;
  }

  std::string finish() const { return text_.empty() ? "{}" : text_ + "}"; }

 private:
  void write(std::integral auto value) { text_ += std::to_string(value); }
  void write(const std::string& value) { write(std::string_view(value)); }
  void write(const char* value) { write(std::string_view(value)); }

  void write(const RawJson& value) { text_ += value.text; }

  void write(std::string_view value) {
    constexpr char digits[] = "0123456789abcdef";
    text_ += '"';
    for (const char c : value) {
      const auto byte = static_cast<unsigned char>(c);
      if (c == '"' || c == '\\') {
        text_ += '\\';
        text_ += c;
      } else if (byte < 0x20) {
        text_ += "\\u00";
        text_ += digits[byte >> 4];
        text_ += digits[byte & 15];
      } else {
        text_ += c;
      }
    }
    text_ += '"';
  }

  template <typename T>
  void write(const std::optional<T>& value) {
    if (value) write(*value);
    else text_ += "null";
  }

  template <typename T>
  void write(const std::vector<T>& values) {
    text_ += '[';
    for (std::size_t i = 0; i < values.size(); ++i) {
      if (i > 0) text_ += ", ";
      write(values[i]);
    }
    text_ += ']';
  }

  std::string text_;
};

}  // namespace precast
