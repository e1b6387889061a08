#include <array>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "runtime/native/src/crc32.h"
#include "runtime/native/src/weights_file.h"
#include "tests/native/check.h"
#include "tests/native/engine_files.h"

using namespace precast;
using precast::test::as_bytes;
using precast::test::data_start;
using precast::test::Header;
using precast::test::Record;
using precast::test::refusal;
using precast::test::refusal_code;
using precast::test::starts_with;
using precast::test::TemporaryDirectory;

namespace {

constexpr std::uint64_t mib = std::uint64_t{1} << 20;
constexpr std::uint64_t u64_max = std::numeric_limits<std::uint64_t>::max();
constexpr std::uint64_t file_end = data_start + 64;

std::string header_complaint(const Header& header, std::uint64_t file_size = file_end) {
  return refusal([&] { read_weights_header(as_bytes(header.bytes()), file_size, "w"); });
}

/// What is said of an index, in a file that is right otherwise.
std::string index_complaint(const std::string& index, std::uint32_t tensor_count = 1) {
  return refusal([&] {
    Header header(index);
    header.tensor_count = tensor_count;
    const std::string bytes = header.bytes();
    read_weights_index(as_bytes(index), read_weights_header(as_bytes(bytes), file_end, "w"), "w");
  });
}

/// The file of a header, an index and data: one tensor of 16 floats unless the header says otherwise.
std::string file_of(const Header& header, const std::string& index) {
  std::string bytes = header.bytes() + index;
  bytes.resize(data_start, '\0');
  for (int i = 0; i < 16; ++i) bytes += std::string({0, 0, static_cast<char>(0x80), 0x3F});  // 1.0F
  return bytes;
}

}  // namespace

TEST("crc32: the check value of the standard") {
  CHECK_EQ(crc32(as_bytes("123456789")), 0xCBF43926U);
  CHECK_EQ(crc32({}), 0U);
}

TEST("weights file: tensors are found where they are") {
  const TemporaryDirectory directory;
  const Record packed{.name = "w/0", .layout = "x16k1.f32/1", .shape = {2, 4}, .size = 32};
  const Record scalar{.name = "b", .type = "uint8", .shape = {}, .offset = data_start + 64, .size = 1};
  const std::string index = packed.bytes() + scalar.bytes();
  Header header(index);
  header.tensor_count = 2;
  header.file_size = file_end + 1;
  const WeightsFile weights = WeightsFile::open(directory.write("w", file_of(header, index) + "\x2A"));
  CHECK_EQ(weights.tensors().size(), 2U);

  const TensorEntry& w = weights.find("w/0");
  CHECK_EQ(w.name, "w/0");
  CHECK(w.type == TensorType::float32);
  CHECK((w.shape == std::vector<std::int64_t>{2, 4}));
  CHECK_EQ(w.layout, "x16k1.f32/1");
  CHECK_EQ(w.offset, data_start);
  CHECK_EQ(w.size_bytes, 32U);
  CHECK_EQ(reinterpret_cast<std::uintptr_t>(w.data) % MappedFile::huge_page_bytes, 0U);
  CHECK_EQ(reinterpret_cast<const float*>(w.data)[7], 1.0F);

  const TensorEntry& b = weights.find("b");
  CHECK(b.shape.empty());
  CHECK_EQ(std::to_integer<int>(*b.data), 42);
  CHECK_EQ(refusal([&] { weights.find("bb"); }),
           (directory.path() / "w").string() + ": has no tensor \"bb\": rebuild the engine");
  CHECK(weights.file().huge_page_mapped_bytes() <= weights.file().bytes().size());
}

TEST("weights file: moving it moves nothing of the data") {
  const TemporaryDirectory directory;
  const std::string index = Record{}.bytes();
  WeightsFile first = WeightsFile::open(directory.write("w", file_of(Header(index), index)));
  const std::byte* data = first.find("a").data;
  const WeightsFile second = std::move(first);
  CHECK_EQ(second.find("a").data, data);
  CHECK_EQ(std::to_integer<int>(data[3]), 0x3F);
}

TEST("weights file: no tensors") {
  const TemporaryDirectory directory;
  Header header("");
  header.tensor_count = 0;
  header.file_size = data_start;
  const WeightsFile weights = WeightsFile::open(directory.write("w", file_of(header, "").substr(0, data_start)));
  CHECK(weights.tensors().empty());
}

TEST("weights file: names and sizes of the types") {
  constexpr std::array<std::pair<const char*, std::uint64_t>, 7> types = {
      {{"float32", 4}, {"float16", 2}, {"bfloat16", 2}, {"int8", 1}, {"uint8", 1}, {"int32", 4}, {"int64", 8}}};
  for (const auto& [text, bytes] : types) {
    const std::string index = Record{.type = text, .shape = {2}, .size = 2 * bytes}.bytes();
    const std::string start = Header(index).bytes();
    const WeightsHeader header = read_weights_header(as_bytes(start), file_end, "w");
    const std::vector<TensorEntry> tensors = read_weights_index(as_bytes(index), header, "w");
    CHECK_EQ(name(tensors[0].type), text);
    CHECK_EQ(element_bytes(tensors[0].type), bytes);
  }
}

TEST("weights file: headers that lie") {
  const std::string index = Record{}.bytes();
  const std::string places = "w: data_offset must be a multiple of 2097152 from " + std::to_string(64 + index.size()) +
                             " to " + std::to_string(file_end) + ", got ";
  const auto with = [&](auto&& change) {
    Header header(index);
    change(header);
    return header_complaint(header);
  };
  CHECK_EQ(with([](Header&) {}), "nothing was thrown");
  CHECK_EQ(with([](Header& h) { h.index_size = u64_max; }),
           "w: index_size must be at most 67108864, got " + std::to_string(u64_max));
  CHECK_EQ(with([](Header& h) { h.index_size = u64_max - 63; }),
           "w: index_size must be at most 67108864, got " + std::to_string(u64_max - 63));
  CHECK_EQ(with([](Header& h) { h.index_size = data_start; }),
           "w: data_offset must be a multiple of 2097152 from 2097216 to 2097216, got 2097152");
  CHECK_EQ(with([](Header& h) { h.data_offset = 0; }), places + "0");
  CHECK_EQ(with([](Header& h) { h.data_offset = mib; }), places + "1048576");
  CHECK_EQ(with([](Header& h) { h.data_offset = 2 * data_start; }), places + "4194304");
  CHECK_EQ(with([](Header& h) { h.data_offset = u64_max - data_start + 1; }),
           places + std::to_string(u64_max - data_start + 1));
  CHECK_EQ(with([](Header& h) { h.file_size = 5; }),
           "w: is 2097216 bytes, its header says 5: the copy was cut short; copy the engine again or rebuild it");
  CHECK_EQ(with([](Header& h) { h.version = 2; }),
           "w: weights version 2, this precast reads 1: update precast or rebuild the engine");
}

TEST("weights file: another version is unsupported, not corrupt") {
  Header header(Record{}.bytes());
  header.version = 2;
  CHECK_EQ(refusal_code([&] { read_weights_header(as_bytes(header.bytes()), file_end, "w"); }),
           static_cast<int>(ErrorCode::unsupported_engine));
}

TEST("weights file: records that lie") {
  const auto complaint = [](const std::string& index) {
    const std::string text = index_complaint(index);
    const std::string start = "w: record 0 of the index: ";
    return starts_with(text, start) ? text.substr(start.size()) : text;
  };
  const std::string index = Record{}.bytes();
  const std::string size = std::to_string(index.size());
  const std::string printable = "printable ASCII without spaces, got ";
  const std::string too_large = "tensor \"a\": its shape needs more than 9223372036854775807 bytes";
  const auto counts = [](std::uint32_t a, std::uint32_t b, std::uint32_t c, std::uint32_t d) {
    using precast::test::little_endian;
    return little_endian(a) + little_endian(b) + little_endian(c) + little_endian(d);
  };
  CHECK_EQ(complaint(index), "nothing was thrown");
  CHECK_EQ(complaint(index.substr(0, index.size() - 8)),
           "needs " + size + " bytes, the index has " + std::to_string(index.size() - 8) + " left");
  CHECK_EQ(complaint(index.substr(0, 12)), "needs 16 bytes, the index has 12 left");
  CHECK_EQ(complaint(counts(0, 1, 1, 0)), "name_len must be from 1 to 1024, got 0");
  CHECK_EQ(complaint(counts(UINT32_MAX, 1, 1, 0)), "name_len must be from 1 to 1024, got 4294967295");
  CHECK_EQ(complaint(counts(1, 65, 1, 0)), "dtype_len must be from 1 to 64, got 65");
  CHECK_EQ(complaint(counts(1, 1, 0, 0)), "layout_len must be from 1 to 64, got 0");
  CHECK_EQ(complaint(counts(1, 1, 1, UINT32_MAX)), "rank must be from 0 to 8, got 4294967295");
  CHECK_EQ(complaint(counts(1024, 64, 64, 8)), "needs 1248 bytes, the index has 16 left");
  CHECK_EQ(complaint(Record{.name = std::string("a\0b", 3)}.bytes()), "name must be " + printable + "\"a\\x00b\"");
  CHECK_EQ(complaint(Record{.layout = "pl in"}.bytes()), "layout must be " + printable + "\"pl in\"");
  CHECK_EQ(complaint(Record{.type = "float33"}.bytes()), "tensor \"a\": the dtype \"float33\" is unknown");
  CHECK_EQ(complaint(Record{.shape = {0, 4}, .size = 0}.bytes()),
           "tensor \"a\": the extent of axis 0 must be at least 1, got 0");
  CHECK_EQ(complaint(Record{.shape = {u64_max}}.bytes()), too_large);
  CHECK_EQ(complaint(Record{.shape = {std::uint64_t{1} << 62, 4}, .size = 0}.bytes()), too_large);
  CHECK_EQ(complaint(Record{.size = 60}.bytes()), "tensor \"a\": its shape needs 64 bytes, its size is 60");
  CHECK_EQ(complaint(Record{.offset = data_start + 4}.bytes()),
           "tensor \"a\": its offset must be a multiple of 64, got 2097156");
  CHECK_EQ(complaint(Record{.offset = 64}.bytes()),
           "tensor \"a\": its offset must be at least 2097152, where the bytes before it end, got 64");
  CHECK_EQ(complaint(Record{.offset = file_end}.bytes()),
           "tensor \"a\": its 64 bytes at offset 2097216 end behind the file's 2097216");
  CHECK_EQ(complaint(Record{.offset = u64_max - 63}.bytes()),
           "tensor \"a\": its 64 bytes at offset 18446744073709551552 end behind the file's 2097216");
}

TEST("weights file: counts, overlaps and twins") {
  const std::string index = Record{}.bytes();
  CHECK_EQ(index_complaint(index, 0),
           "w: the index is " + std::to_string(index.size()) + " bytes, its 0 records end after 0");
  CHECK_EQ(index_complaint(index, 2), "w: record 1 of the index: needs 16 bytes, the index has 0 left");
  CHECK_EQ(index_complaint(index, UINT32_MAX), "w: record 1 of the index: needs 16 bytes, the index has 0 left");
  const std::string half = Record{.shape = {4}, .size = 16}.bytes();
  CHECK_EQ(index_complaint(half + Record{.name = "b", .shape = {4}, .size = 16}.bytes(), 2),
           "w: record 1 of the index: tensor \"b\": its offset must be at least 2097168, "
           "where the bytes before it end, got 2097152");
  const std::string twins = half + Record{.shape = {1}, .offset = file_end, .size = 4}.bytes();
  Header header(twins);
  header.tensor_count = 2;
  header.file_size = file_end + 4;
  CHECK_EQ(refusal([&] {
             const WeightsHeader read = read_weights_header(as_bytes(header.bytes()), file_end + 4, "w");
             read_weights_index(as_bytes(twins), read, "w");
           }),
           "w: tensor \"a\" is in the index twice");
}

TEST("weights file: every damaged byte of header and index is found") {
  const std::string index = Record{}.bytes();
  const std::string header = Header(index).bytes();
  const WeightsHeader good = read_weights_header(as_bytes(header), file_end, "w");
  for (int mask = 1; mask < 256; mask *= 2) {
    for (std::size_t i = 0; i < header.size(); ++i) {
      std::string damaged = header;
      damaged[i] = static_cast<char>(damaged[i] ^ mask);
      CHECK_EQ(refusal_code([&] { read_weights_header(as_bytes(damaged), file_end, "w"); }),
               static_cast<int>(ErrorCode::corrupt_engine));
    }
    for (std::size_t i = 0; i < index.size(); ++i) {
      std::string damaged = index;
      damaged[i] = static_cast<char>(damaged[i] ^ mask);
      CHECK(starts_with(refusal([&] { read_weights_index(as_bytes(damaged), good, "w"); }), "w: the index is damaged"));
    }
  }
}

TEST("weights file: files that are no weights") {
  const TemporaryDirectory directory;
  const auto complaint = [](const std::filesystem::path& path) {
    const std::string text = refusal([&] { WeightsFile::open(path); });
    return starts_with(text, path.string()) ? text.substr(path.string().size()) : text;
  };
  CHECK_EQ(complaint(directory.write("empty", "")), ": is 0 bytes, less than its header of 64");
  CHECK_EQ(complaint(directory.write("short", "PRECASTW")), ": is 8 bytes, less than its header of 64");
  CHECK_EQ(complaint(directory.write("other", "GGUF" + std::string(100, '\0'))),
           ": not a weights file: it must start with \"PRECASTW\", got \"GGUF\\x00\\x00\\x00\\x00\"");
  CHECK_EQ(complaint(directory.path()), ": not a regular file");
  CHECK_EQ(complaint(directory.path() / "absent"), ": cannot open it: No such file or directory");
  CHECK_EQ(refusal_code([&] { WeightsFile::open(directory.path() / "absent"); }),
           static_cast<int>(ErrorCode::not_found));

  const std::string index = Record{}.bytes();
  const std::string whole = file_of(Header(index), index);
  CHECK_EQ(complaint(directory.write("cut", whole.substr(0, whole.size() - 1))),
           ": is 2097215 bytes, its header says 2097216: the copy was cut short; copy the engine again or rebuild it");
}
