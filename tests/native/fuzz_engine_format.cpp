// Readers of engine files against inputs that were valid once: bytes flipped, cut, moved, spliced, from a fixed seed.
// The sanitizers see what no check does. Every input is either read, and then keeps the promises of the reader, or
// refused by an Error that names it.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/native/src/concat.h"
#include "runtime/native/src/json.h"
#include "runtime/native/src/weights_index.h"
#include "tests/native/check.h"
#include "tests/native/engine_files.h"

using namespace precast;
using precast::test::as_bytes;
using precast::test::data_start;
using precast::test::Header;
using precast::test::manifest_text;
using precast::test::Record;
using precast::test::starts_with;
using precast::test::tiny_support;

namespace {

using Generator = std::mt19937_64;

std::size_t below(Generator& random, std::size_t limit) { return static_cast<std::size_t>(random() % limit); }

/// One change at a random place. `pieces` are what the input's own syntax is made of.
void mutate_once(std::string& text, const std::vector<std::string>& pieces, Generator& random) {
  const std::size_t at = below(random, text.size() + 1);
  const std::size_t length = std::min(below(random, 16) + 1, text.size() - at);
  switch (below(random, 7)) {
    case 0: if (at < text.size()) text[at] = static_cast<char>(text[at] ^ (1 << below(random, 8))); break;
    case 1: if (at < text.size()) text[at] = static_cast<char>(random()); break;
    case 2: text.resize(at); break;
    case 3: text.erase(at, length); break;
    case 4: text.insert(below(random, text.size() + 1), text.substr(at, length)); break;
    case 5: text.insert(at, pieces[below(random, pieces.size())]); break;
    default: text.replace(at, length, pieces[below(random, pieces.size())]); break;
  }
}

std::string mutated(std::string text, const std::vector<std::string>& pieces, Generator& random) {
  for (std::size_t n = below(random, 4); n > 0; --n) mutate_once(text, pieces, random);
  return text;
}

struct Tally {
  int read = 0;
  int refused = 0;
};

/// Runs `read` on an input; an Error must be one of the two that a damaged file deserves, and name its source.
template <typename F>
void attempt(Tally& tally, F&& read) {
  try {
    read();
    ++tally.read;
  } catch (const Error& error) {
    CHECK(error.code() == ErrorCode::corrupt_engine || error.code() == ErrorCode::unsupported_engine);
    CHECK(starts_with(error.what(), "fuzz:"));
    ++tally.refused;
  }
}

const std::vector<std::string> json_pieces = {
    "{", "}", "[", "]", ":", ",", "\"", "\\", "\\u", "\\ud800", "\\udc00", "null", "true", "-", "1e999", ".", "0",
    "9223372036854775808", "../", "/", "\"format\": 2,", "\"\": [],", std::string(1, '\0'), "\xED\xA0\x80", "\xF0\x9F",
    std::string(33, '['), "\"files\": {}", "[[], {}, \"\"]"};

/// The document again, from its value.
std::string dump(const JsonValue& value);

std::string dump_text(const std::string& text) {
  std::string result = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      result += {'\\', c};
    } else if (static_cast<unsigned char>(c) < 0x20) {
      result += "\\u00";
      result += "0123456789abcdef"[c >> 4];
      result += "0123456789abcdef"[c & 15];
    } else {
      result += c;
    }
  }
  return result + '"';
}

struct Dumper {
  std::string operator()(std::nullptr_t) const { return "null"; }
  std::string operator()(bool value) const { return value ? "true" : "false"; }
  std::string operator()(std::int64_t value) const { return std::to_string(value); }
  std::string operator()(double value) const {
    std::string text(400, '\0');
    text.resize(static_cast<std::size_t>(std::snprintf(text.data(), text.size(), "%.17e", value)));
    return text;
  }
  std::string operator()(const std::string& text) const { return dump_text(text); }
  std::string operator()(const JsonValue::Array& elements) const {
    std::string text;
    for (const JsonValue& element : elements) {
      if (!text.empty()) text += ',';
      text += dump(element);
    }
    return concat('[', text, ']');
  }
  std::string operator()(const JsonValue::Object& members) const {
    std::string text;
    for (const JsonMember& member : members) {
      if (!text.empty()) text += ',';
      text += concat(dump_text(member.name), ':', dump(member.value));
    }
    return concat('{', text, '}');
  }
};

std::string dump(const JsonValue& value) { return std::visit(Dumper{}, value.data); }

void check_manifest(const EngineManifest& manifest) {
  CHECK_EQ(static_cast<std::int64_t>(manifest.ranks.size()), manifest.mapping.world_size);
  for (const FileEntry& file : manifest.files) {
    const std::filesystem::path path = file.path;
    CHECK(path.is_relative());
    CHECK_EQ(path.lexically_normal(), path);
    CHECK(*path.begin() != "..");
  }
}

void check_tensors(const std::vector<TensorEntry>& tensors, const WeightsHeader& header) {
  CHECK_EQ(tensors.size(), header.tensor_count);
  std::uint64_t end = header.data_offset;
  for (const TensorEntry& tensor : tensors) {
    CHECK_EQ(tensor.offset % 64, 0U);
    CHECK(tensor.offset >= end);
    CHECK(tensor.offset <= header.file_size);
    CHECK(tensor.size_bytes <= header.file_size - tensor.offset);
    std::uint64_t size = element_bytes(tensor.type);
    for (const std::int64_t extent : tensor.shape) size *= static_cast<std::uint64_t>(extent);
    CHECK_EQ(size, tensor.size_bytes);
    end = tensor.offset + tensor.size_bytes;
  }
}

std::uint64_t odd_number(Generator& random) {
  constexpr std::uint64_t max = std::numeric_limits<std::uint64_t>::max();
  const std::uint64_t numbers[] = {0, 1, 63, 64, data_start, data_start + 64, 2 * data_start, std::uint64_t{1} << 32,
                                   std::uint64_t{1} << 63, max - data_start + 1, max - 63, max, random()};
  return numbers[below(random, std::size(numbers))];
}

Record random_record(Generator& random, std::uint64_t offset) {
  Record record{.name = "tensor." + std::to_string(below(random, 12)), .shape = {below(random, 4) + 1, 4}};
  record.size = record.shape[0] * 16;
  record.offset = offset;
  switch (below(random, 12)) {
    case 0: record.shape[below(random, 2)] = odd_number(random); break;
    case 1: record.offset = odd_number(random); break;
    case 2: record.size = odd_number(random); break;
    case 3: record.shape.resize(below(random, 10), 1); break;
    default: break;
  }
  return record;
}

void change_header(Header& header, Generator& random) {
  switch (below(random, 6)) {
    case 0: header.tensor_count = static_cast<std::uint32_t>(odd_number(random)); break;
    case 1: header.index_size = odd_number(random); break;
    case 2: header.data_offset = odd_number(random); break;
    case 3: header.file_size = odd_number(random); break;
    default: break;
  }
}

}  // namespace

TEST("fuzz: JSON") {
  Generator random(1);
  Tally tally;
  const std::vector<std::string> samples = {manifest_text(),
                                            R"([null, true, -1.5e-3, "\ud83d\ude00 \u00e4", {"a": {"b": []}}])",
                                            R"({"\"\\\/\b": 12, "": 0.1})"};
  for (int i = 0; i < 10'000; ++i) {
    // A buffer of exactly the text's size: a read behind it is seen.
    const std::string text = mutated(samples[below(random, samples.size())], json_pieces, random);
    const std::vector<char> exact(text.begin(), text.end());
    attempt(tally, [&] {
      const std::string again = dump(parse_json({exact.data(), exact.size()}, "fuzz"));
      CHECK_EQ(dump(parse_json(again, "fuzz")), again);
    });
  }
  CHECK(tally.read > 1'000);
  CHECK(tally.refused > 5'000);
}

TEST("fuzz: engine.json") {
  RuntimeSupport support = tiny_support();
  support.supports = [supports = support.supports](std::string_view name) { return supports(name) || name == "kv4.f16/1"; };
  support.backends.emplace_back("tensorrt");
  Generator random(2);
  Tally tally;
  for (int i = 0; i < 10'000; ++i) {
    const std::string text = mutated(i % 2 == 0 ? manifest_text() : test::device_manifest_text({}), json_pieces, random);
    attempt(tally, [&] { check_manifest(parse_manifest(text, "fuzz", support)); });
  }
  CHECK(tally.read > 1'000);
  CHECK(tally.refused > 5'000);
}

TEST("fuzz: the index of weights.bin, with checksums that are right") {
  Generator random(3);
  Tally tally;
  const std::vector<std::string> pieces = {std::string(8, '\0'), std::string(8, '\xFF'), std::string("\1\0\0\0", 4),
                                           Record{}.bytes()};
  for (int i = 0; i < 10'000; ++i) {
    std::string index;
    std::uint64_t offset = data_start;
    const std::size_t num_records = below(random, 5);
    for (std::size_t n = 0; n < num_records; ++n, offset += 64) index += random_record(random, offset).bytes();
    if (below(random, 2) == 0) index = mutated(std::move(index), pieces, random);
    Header header(index);
    header.tensor_count = static_cast<std::uint32_t>(num_records);
    header.file_size = offset;
    change_header(header, random);
    const std::string start = header.bytes();
    const auto real_size = below(random, 20) == 0 ? odd_number(random) : header.file_size;
    attempt(tally, [&] {
      const WeightsHeader read = read_weights_header(as_bytes(start), real_size, "fuzz");
      const std::vector<char> exact(index.begin(), index.end());
      check_tensors(read_weights_index(std::as_bytes(std::span(exact)), read, "fuzz"), read);
    });
  }
  CHECK(tally.read > 1'000);
  CHECK(tally.refused > 5'000);
}

TEST("fuzz: the start of weights.bin, byte by byte") {
  Generator random(4);
  Tally tally;
  const std::string header = Header(Record{}.bytes()).bytes();
  for (int i = 0; i < 10'000; ++i) {
    const std::string text = mutated(header, {std::string(4, '\0'), "PRECASTW"}, random).substr(0, 64);
    const std::vector<char> exact(text.begin(), text.end());
    attempt(tally, [&] { read_weights_header(std::as_bytes(std::span(exact)), data_start + 64, "fuzz"); });
  }
  CHECK(tally.read > 1'000);
  CHECK(tally.refused > 5'000);
}
