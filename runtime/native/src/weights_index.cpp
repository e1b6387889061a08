#include "runtime/native/src/weights_index.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <numeric>
#include <optional>

#include "runtime/native/src/concat.h"
#include "runtime/native/src/crc32.h"
#include "runtime/native/src/error.h"

namespace precast {
namespace {

static_assert(std::endian::native == std::endian::little, "weights.bin is little-endian and used without conversion");

constexpr std::string_view magic = "PRECASTW";
constexpr std::uint32_t supported_version = 1;
constexpr std::size_t header_crc_offset = 60;
constexpr std::uint64_t data_alignment = std::uint64_t{2} << 20;
constexpr std::uint64_t tensor_alignment = 64;
constexpr std::uint64_t max_index_bytes = std::uint64_t{64} << 20;
constexpr std::uint32_t max_name_bytes = 1024;
constexpr std::uint32_t max_id_bytes = 64;  // of a dtype or a layout
constexpr std::uint32_t max_rank = 8;

struct TypeInfo {
  std::string_view name;
  std::size_t bytes;
};
constexpr std::array<TypeInfo, 7> type_infos = {
    {{"float32", 4}, {"float16", 2}, {"bfloat16", 2}, {"int8", 1}, {"uint8", 1}, {"int32", 4}, {"int64", 8}}};

std::optional<TensorType> parse_tensor_type(std::string_view text) {
  const auto found = std::ranges::find(type_infos, text, &TypeInfo::name);
  if (found == type_infos.end()) return std::nullopt;
  return static_cast<TensorType>(found - type_infos.begin());
}

template <typename... Parts>
[[noreturn]] void corrupt(const std::string& source, const Parts&... complaint) {
  throw Error(ErrorCode::corrupt_engine, concat(source, ": ", complaint...));
}

template <typename T>
T load(std::span<const std::byte> bytes, std::size_t offset) {
  T value{};
  std::memcpy(&value, bytes.subspan(offset, sizeof(T)).data(), sizeof(T));
  return value;
}

std::string_view text_at(std::span<const std::byte> bytes, std::size_t offset, std::size_t size) {
  const std::span<const std::byte> part = bytes.subspan(offset, size);
  return {reinterpret_cast<const char*>(part.data()), part.size()};
}

/// Reads the records one behind the other. Nothing is read before need() has found it inside the index.
class IndexReader {
 public:
  IndexReader(std::span<const std::byte> index, const WeightsHeader& header, const std::string& source)
      : index_(index), header_(header), source_(source), data_end_(header.data_offset) {}

  std::vector<TensorEntry> read() {
    std::vector<TensorEntry> tensors;
    for (number_ = 0; number_ < header_.tensor_count; ++number_) tensors.push_back(read_record());
    if (position_ != index_.size()) {
      corrupt(source_, "the index is ", index_.size(), " bytes, its ", number_, " records end after ", position_);
    }
    return tensors;
  }

 private:
  static constexpr std::size_t fixed_bytes = 16;  // name_len, dtype_len, layout_len, rank

  template <typename... Parts>
  [[noreturn]] void fail_record(const Parts&... complaint) const {
    corrupt(source_, "record ", number_, " of the index: ", complaint...);
  }

  template <typename... Parts>
  [[noreturn]] void fail(const TensorEntry& tensor, const Parts&... complaint) const {
    fail_record("tensor ", quote(tensor.name), ": ", complaint...);
  }

  void need(std::size_t bytes) const {
    const std::size_t left = index_.size() - position_;
    if (bytes > left) fail_record("needs ", bytes, " bytes, the index has ", left, " left");
  }

  /// The u32 number `field` of the record, which must lie in [minimum, maximum].
  std::size_t count(std::size_t field, const char* what, std::uint32_t minimum, std::uint32_t maximum) const {
    const auto value = load<std::uint32_t>(index_, position_ + 4 * field);
    if (value < minimum || value > maximum) {
      fail_record(what, " must be from ", minimum, " to ", maximum, ", got ", value);
    }
    return value;
  }

  TensorEntry read_record() {
    need(fixed_bytes);
    const std::size_t name_bytes = count(0, "name_len", 1, max_name_bytes);
    const std::size_t type_bytes = count(1, "dtype_len", 1, max_id_bytes);
    const std::size_t layout_bytes = count(2, "layout_len", 1, max_id_bytes);
    const std::size_t rank = count(3, "rank", 0, max_rank);
    const std::size_t text_bytes = name_bytes + type_bytes + layout_bytes;
    const std::size_t record_bytes = (fixed_bytes + 8 * (rank + 2) + text_bytes + 7) / 8 * 8;
    need(record_bytes);

    const std::size_t shape_at = position_ + fixed_bytes;
    const std::size_t place_at = shape_at + 8 * rank;
    const std::size_t name_at = place_at + 16;
    const std::size_t type_at = name_at + name_bytes;
    TensorEntry tensor;
    tensor.name = text_at(index_, name_at, name_bytes);
    tensor.layout = text_at(index_, type_at + type_bytes, layout_bytes);
    tensor.offset = load<std::uint64_t>(index_, place_at);
    tensor.size_bytes = load<std::uint64_t>(index_, place_at + 8);
    check_text(tensor.name, "name");
    check_text(tensor.layout, "layout");
    tensor.type = read_type(tensor, text_at(index_, type_at, type_bytes));
    tensor.shape = read_shape(tensor, shape_at, rank);
    check_place(tensor);
    position_ += record_bytes;
    data_end_ = tensor.offset + tensor.size_bytes;
    return tensor;
  }

  void check_text(const std::string& text, const char* what) const {
    const auto printable = [](char c) { return c >= 0x21 && c <= 0x7E; };
    if (!std::ranges::all_of(text, printable)) {
      fail_record(what, " must be printable ASCII without spaces, got ", quote(text));
    }
  }

  TensorType read_type(const TensorEntry& tensor, std::string_view text) const {
    if (const std::optional<TensorType> type = parse_tensor_type(text)) return *type;
    fail(tensor, "the dtype ", quote(text), " is unknown");
  }

  std::vector<std::int64_t> read_shape(const TensorEntry& tensor, std::size_t shape_at, std::size_t rank) const {
    constexpr auto limit = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
    std::vector<std::int64_t> shape;
    std::uint64_t size_bytes = element_bytes(tensor.type);
    for (std::size_t axis = 0; axis < rank; ++axis) {
      const auto extent = load<std::uint64_t>(index_, shape_at + 8 * axis);
      if (extent == 0) fail(tensor, "the extent of axis ", axis, " must be at least 1, got 0");
      if (extent > limit / size_bytes) fail(tensor, "its shape needs more than ", limit, " bytes");
      size_bytes *= extent;
      shape.push_back(static_cast<std::int64_t>(extent));
    }
    if (size_bytes != tensor.size_bytes) {
      fail(tensor, "its shape needs ", size_bytes, " bytes, its size is ", tensor.size_bytes);
    }
    return shape;
  }

  void check_place(const TensorEntry& tensor) const {
    if (tensor.offset % tensor_alignment != 0) {
      fail(tensor, "its offset must be a multiple of ", tensor_alignment, ", got ", tensor.offset);
    }
    if (tensor.offset < data_end_) {
      fail(tensor, "its offset must be at least ", data_end_, ", where the bytes before it end, got ", tensor.offset);
    }
    // No sum that could wrap: the offset is compared before it is subtracted.
    if (tensor.offset > header_.file_size || tensor.size_bytes > header_.file_size - tensor.offset) {
      fail(tensor, "its ", tensor.size_bytes, " bytes at offset ", tensor.offset, " end behind the file's ",
           header_.file_size);
    }
  }

  std::span<const std::byte> index_;
  const WeightsHeader& header_;
  const std::string& source_;
  std::size_t position_ = 0;  // of the record, in the index
  std::uint32_t number_ = 0;  // of the record
  std::uint64_t data_end_;    // where the data of the record before ends, in the file
};

void check_places(const WeightsHeader& header, std::uint64_t file_size, const std::string& source) {
  if (header.file_size != file_size) {
    corrupt(source, "is ", file_size, " bytes, its header says ", header.file_size,
            ": the copy was cut short; copy the engine again or rebuild it");
  }
  if (header.index_size > max_index_bytes) {
    corrupt(source, "index_size must be at most ", max_index_bytes, ", got ", header.index_size);
  }
  const std::uint64_t index_end = WeightsHeader::size_bytes + header.index_size;
  if (header.data_offset % data_alignment != 0 || header.data_offset < index_end || header.data_offset > file_size) {
    corrupt(source, "data_offset must be a multiple of ", data_alignment, " from ", index_end, " to ", file_size,
            ", got ", header.data_offset);
  }
}

void check_crc32(std::uint32_t stored, std::span<const std::byte> bytes, const char* what, const std::string& source) {
  const std::uint32_t computed = crc32(bytes);
  if (stored != computed) {
    corrupt(source, "the ", what, " is damaged (its CRC-32 is ", computed, ", the file says ", stored,
            "): copy the engine again or rebuild it");
  }
}

}  // namespace

std::string_view name(TensorType type) noexcept { return type_infos[static_cast<std::size_t>(type)].name; }
std::size_t element_bytes(TensorType type) noexcept { return type_infos[static_cast<std::size_t>(type)].bytes; }

WeightsHeader read_weights_header(std::span<const std::byte> start, std::uint64_t file_size,
                                  const std::string& source) {
  if (start.size() < WeightsHeader::size_bytes) {
    corrupt(source, "is ", file_size, " bytes, less than its header of ", WeightsHeader::size_bytes);
  }
  if (text_at(start, 0, magic.size()) != magic) {
    corrupt(source, "not a weights file: it must start with ", quote(magic), ", got ",
            quote(text_at(start, 0, magic.size())));
  }
  check_crc32(load<std::uint32_t>(start, header_crc_offset), start.first(header_crc_offset), "header", source);
  const auto version = load<std::uint32_t>(start, 8);
  if (version != supported_version) {
    throw Error(ErrorCode::unsupported_engine, concat(source, ": weights version ", version, ", this precast reads ",
                                                      supported_version, ": update precast or rebuild the engine"));
  }
  const WeightsHeader header{.tensor_count = load<std::uint32_t>(start, 12),
                             .index_size = load<std::uint64_t>(start, 16),
                             .data_offset = load<std::uint64_t>(start, 24),
                             .file_size = load<std::uint64_t>(start, 32),
                             .index_crc32 = load<std::uint32_t>(start, 40)};
  check_places(header, file_size, source);
  return header;
}

std::vector<TensorEntry> read_weights_index(std::span<const std::byte> index, const WeightsHeader& header,
                                            const std::string& source) {
  check_crc32(header.index_crc32, index, "index", source);
  std::vector<TensorEntry> tensors = IndexReader(index, header, source).read();
  const std::vector<std::size_t> order = order_by_name(tensors);
  const auto same_name = [&](std::size_t a, std::size_t b) { return tensors[a].name == tensors[b].name; };
  const auto twin = std::ranges::adjacent_find(order, same_name);
  if (twin != order.end()) corrupt(source, "tensor ", quote(tensors[*twin].name), " is in the index twice");
  return tensors;
}

std::vector<std::size_t> order_by_name(std::span<const TensorEntry> tensors) {
  std::vector<std::size_t> order(tensors.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::ranges::sort(order, {}, [&](std::size_t i) -> const std::string& { return tensors[i].name; });
  return order;
}

}  // namespace precast
