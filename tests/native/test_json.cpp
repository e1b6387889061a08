#include <string>
#include <string_view>
#include <variant>

#include "runtime/native/src/json_cursor.h"
#include "tests/native/check.h"
#include "tests/native/engine_files.h"

using namespace precast;
using precast::test::refusal;

namespace {

JsonValue parse(std::string_view text) { return parse_json(text, "doc"); }
std::string complaint(std::string_view text) {
  return refusal([&] { parse(text); });
}

}  // namespace

TEST("json: every kind of value") {
  const JsonValue document = parse(R"( { "a" : [ null , true, false, -12, 2.5e-1, "x" ], "b": {} , "" : [] } )");
  const std::string source = "doc";
  const JsonCursor root(document, source);
  const auto a = root.at("a").elements();
  CHECK_EQ(a.size(), 6U);
  CHECK(a[0].is_null());
  CHECK(a[1].boolean());
  CHECK(!a[2].boolean());
  CHECK_EQ(a[3].integer(), -12);
  const JsonMember& member = std::get<JsonValue::Object>(document.data)[0];
  CHECK_EQ(std::get<double>(std::get<JsonValue::Array>(member.value.data)[4].data), 0.25);
  CHECK_EQ(a[5].string(), "x");
  CHECK_EQ(root.at("b").members().size(), 0U);
  CHECK_EQ(root.at("").elements().size(), 0U);
  CHECK(!root.find("c").has_value());
  CHECK_EQ(root.members()[1].name, "b");
}

TEST("json: escapes and UTF-8") {
  const auto text = [](std::string_view document) { return std::get<std::string>(parse(document).data); };
  CHECK_EQ(text(R"("\"\\\/\b\f\n\r\t")"), "\"\\/\b\f\n\r\t");
  CHECK_EQ(text(R"("\u0041\u00e4\u20aC\uD83D\ude00\u0000")"), std::string("A\u00e4\u20ac\U0001F600\0", 11));
  CHECK_EQ(text("\"\u00e4\u20ac\U0001F600\x7f\""), "\u00e4\u20ac\U0001F600\x7f");
}

TEST("json: the limits of numbers") {
  CHECK_EQ(std::get<std::int64_t>(parse("9223372036854775807").data), std::numeric_limits<std::int64_t>::max());
  CHECK_EQ(std::get<std::int64_t>(parse("-9223372036854775808").data), std::numeric_limits<std::int64_t>::min());
  CHECK_EQ(std::get<std::int64_t>(parse("-0").data), 0);
  CHECK_EQ(std::get<double>(parse("1e308").data), 1e308);
  CHECK_EQ(std::get<double>(parse("0.0e-999").data), 0.0);
  CHECK_EQ(std::get<double>(parse("4.9e-324").data), 4.9e-324);
  CHECK_EQ(complaint("9223372036854775808"), "doc:1:1: an integer that does not fit into 64 bits");
  CHECK_EQ(complaint("[-9223372036854775809]"), "doc:1:2: an integer that does not fit into 64 bits");
  CHECK_EQ(complaint("1e309"), "doc:1:1: a number that a double cannot hold");
  CHECK_EQ(complaint("1e-999"), "doc:1:1: a number that a double cannot hold");
}

TEST("json: a syntax error says line, column, what was expected and what is there") {
  CHECK_EQ(complaint(""), "doc:1:1: expected a value, got the end of the document");
  CHECK_EQ(complaint("  \n "), "doc:2:2: expected a value, got the end of the document");
  CHECK_EQ(complaint("{\"a\": 1,\n \"b\" 2}"), "doc:2:6: expected ':' after a member name, got \"2\"");
  CHECK_EQ(complaint("{\"\u00e4\u00e4\": x}"), "doc:1:8: expected a value, got \"x\"");
  CHECK_EQ(complaint("{\"a\": \u20ac}"), "doc:1:7: expected a value, got \"\u20ac\"");
  CHECK_EQ(complaint("[1 2]"), "doc:1:4: expected ',' or ']' after an element, got \"2\"");
  CHECK_EQ(complaint("[1,]"), "doc:1:4: expected a value, got \"]\"");
  CHECK_EQ(complaint("{\"a\":1,}"), "doc:1:8: expected a member name in double quotes, got \"}\"");
  CHECK_EQ(complaint("{\"a\":1"), "doc:1:7: expected ',' or '}' after a member, got the end of the document");
  CHECK_EQ(complaint("{1:1}"), "doc:1:2: expected a member name in double quotes, got \"1\"");
  CHECK_EQ(complaint("[1] 2"), "doc:1:5: expected the end of the document, got \"2\"");
  CHECK_EQ(complaint(std::string_view("1\0", 2)), "doc:1:2: expected the end of the document, got \"\\x00\"");
  CHECK_EQ(complaint("tru"), "doc:1:1: expected a value, got \"t\"");
  CHECK_EQ(complaint("nulll"), "doc:1:5: expected the end of the document, got \"l\"");
  CHECK_EQ(complaint("NaN"), "doc:1:1: expected a value, got \"N\"");
  CHECK_EQ(complaint("-Infinity"), "doc:1:2: expected a digit, got \"I\"");
  CHECK_EQ(complaint("01"), "doc:1:2: expected the end of the document, got \"1\"");
  CHECK_EQ(complaint("+1"), "doc:1:1: expected a value, got \"+\"");
  CHECK_EQ(complaint("1."), "doc:1:3: expected a digit, got the end of the document");
  CHECK_EQ(complaint(".5"), "doc:1:1: expected a value, got \".\"");
  CHECK_EQ(complaint("1e+"), "doc:1:4: expected a digit, got the end of the document");
  CHECK_EQ(complaint("\xEF\xBB\xBF{}"), "doc:1:1: expected a value, got \"\xEF\xBB\xBF\"");
}

TEST("json: strings are whole, valid UTF-8 and free of control characters") {
  const std::string expected = "expected a character of a string or '\"', got ";
  CHECK_EQ(complaint("\"a"), "doc:1:3: " + expected + "the end of the document");
  CHECK_EQ(complaint("\"a\nb\""), "doc:1:3: " + expected + "\"\\x0a\"");
  CHECK_EQ(complaint(std::string_view("\"\0\"", 3)), "doc:1:2: " + expected + "\"\\x00\"");
  for (const std::string_view bad : {"\x80", "\xC0\x80", "\xC1\xBF", "\xE0\x9F\xBF", "\xED\xA0\x80", "\xF0\x8F\xBF\xBF",
                                     "\xF4\x90\x80\x80", "\xF5\x80\x80\x80", "\xFF", "\xE2\x82", "\xC3"}) {
    CHECK_EQ(complaint('"' + std::string(bad) + '"'), "doc:1:2: " + expected + "a byte that is not UTF-8");
    CHECK_EQ(complaint('"' + std::string(bad)), "doc:1:2: " + expected + "a byte that is not UTF-8");
  }
  CHECK_EQ(complaint(R"("\x")"), "doc:1:3: expected one of \" \\ / b f n r t u after '\\', got \"x\"");
  CHECK_EQ(complaint("\"\\"), "doc:1:3: expected one of \" \\ / b f n r t u after '\\', got the end of the document");
  CHECK_EQ(complaint(R"("\u12g4")"), "doc:1:6: expected four hexadecimal digits after '\\u', got \"g\"");
  for (const std::string_view bad : {R"(\ud800)", R"(\udc00)", R"(\ud800\u0041)", R"(\ud800\n)", R"(\ud800x)"}) {
    CHECK_EQ(complaint('"' + std::string(bad) + '"'), "doc:1:4: half of a surrogate pair stands alone");
  }
}

TEST("json: a member name appears once") {
  CHECK_EQ(complaint(R"({"a": 1, "b": {"a": 2}, "\u0061": 3})"), "doc:1:25: the member \"a\" appears twice");
}

TEST("json: depth and size are limited") {
  const std::string opened(32, '[');
  const std::string closed(32, ']');
  CHECK(std::holds_alternative<JsonValue::Array>(parse(opened + closed).data));
  CHECK_EQ(complaint(opened + "[]" + closed), "doc:1:33: nested deeper than 32 levels");
  CHECK_EQ(complaint(opened + "{}" + closed), "doc:1:33: nested deeper than 32 levels");
  CHECK_EQ(complaint(std::string(1'000'000, '[')), "doc:1:33: nested deeper than 32 levels");
  CHECK_EQ(complaint(std::string(max_json_bytes + 1, ' ')), "doc: 16777217 bytes, the limit is 16777216");
}

TEST("json: a cursor says where and what is wrong") {
  const JsonValue document = parse(R"({"ranks": [{"a b": 1.5, "size": 5}], "s": "x"})");
  const std::string source = "doc";
  const JsonCursor root(document, source);
  const JsonCursor rank = root.at("ranks").elements()[0];
  CHECK_EQ(refusal([&] { root.at("model"); }), "doc: model is missing");
  CHECK_EQ(refusal([&] { rank.at("x/y"); }), "doc: ranks[0][\"x/y\"] is missing");
  CHECK_EQ(refusal([&] { rank.at("a b").integer(); }),
           "doc: ranks[0][\"a b\"] must be an integer, got a number that is not an integer");
  CHECK_EQ(refusal([&] { root.at("s").at("x"); }), "doc: s must be an object, got a string");
  CHECK_EQ(refusal([&] { root.at("s").elements(); }), "doc: s must be an array, got a string");
  CHECK_EQ(refusal([&] { root.at("s").boolean(); }), "doc: s must be a boolean, got a string");
  CHECK_EQ(refusal([&] { root.at("ranks").string(); }), "doc: ranks must be a string, got an array");
  CHECK_EQ(refusal([&] { rank.string(); }), "doc: ranks[0] must be a string, got an object");
  CHECK_EQ(refusal([&] { rank.at("size").integer(6); }), "doc: ranks[0].size must be at least 6, got 5");
  CHECK_EQ(refusal([&] { rank.at("size").integer(0, 4); }), "doc: ranks[0].size must be at most 4, got 5");
  const JsonValue null = parse("null");
  CHECK_EQ(refusal([&] { JsonCursor(null, source).members(); }), "doc: the document must be an object, got null");
}
