#include <cerrno>
#include <string>

#include "runtime/native/src/error.h"
#include "runtime/native/src/utf8.h"
#include "tests/native/check.h"

using precast::Error;
using precast::ErrorCode;
using precast::quote;
using precast::utf8_length;

TEST("error: carries its code and its text") {
  const Error error(ErrorCode::corrupt_engine, "w: damaged");
  CHECK_EQ(static_cast<int>(error.code()), 4);
  CHECK_EQ(std::string(error.what()), "w: damaged");
  CHECK_EQ(precast::system_message(ENOENT), "No such file or directory");
}

TEST("error: a quoted text is printable UTF-8, whatever it was") {
  CHECK_EQ(quote(""), "\"\"");
  CHECK_EQ(quote("a \u00e4\U0001F600"), "\"a \u00e4\U0001F600\"");
  CHECK_EQ(quote(R"(a"b\c)"), R"("a\"b\\c")");
  CHECK_EQ(quote(std::string("\0\n\x1B\x7F", 4)), R"("\x00\x0a\x1b\x7f")");
  CHECK_EQ(quote("\x80\xC3"), R"("\x80\xc3")");
  CHECK_EQ(quote("\xC3(\xE2\x82"), R"("\xc3(\xe2\x82")");
}

TEST("error: a long quoted text is cut between characters") {
  std::string text;
  for (int i = 0; i < 120; ++i) text += "\u00e4";
  CHECK_EQ(quote(text), '"' + text + '"');
  CHECK_EQ(quote(text + "b"), '"' + text + "...\"");
}

TEST("utf8: lengths of characters, 0 for what is none") {
  CHECK_EQ(utf8_length(""), 0U);
  CHECK_EQ(utf8_length("ab"), 1U);
  CHECK_EQ(utf8_length("\u00e4"), 2U);
  CHECK_EQ(utf8_length("\u20ac"), 3U);
  CHECK_EQ(utf8_length("\U0010FFFF"), 4U);
  for (const char* bad : {"\x80", "\xC0\x80", "\xC1\xBF", "\xC3", "\xE0\x9F\xBF", "\xED\xA0\x80", "\xE2\x82",
                          "\xF0\x8F\xBF\xBF", "\xF4\x90\x80\x80", "\xF5\x80\x80\x80", "\xFF"}) {
    CHECK_EQ(utf8_length(bad), 0U);
  }
}
