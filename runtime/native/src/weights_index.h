// The header and the index of weights.bin. docs/engine_format.md is the authority.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace precast {

/// Element types of format 1.
enum class TensorType { float32, float16, bfloat16, int8, uint8, int32, int64 };

/// The name in the index, e.g. "float32".
std::string_view name(TensorType type) noexcept;
std::size_t element_bytes(TensorType type) noexcept;

/// One tensor of the index. The data is dense, row-major and little-endian.
struct TensorEntry {
  std::string name;
  TensorType type = TensorType::uint8;
  std::vector<std::int64_t> shape;  ///< every extent >= 1; empty for a scalar; a packed weight is uint8 [size_bytes]
  std::string layout;               ///< "plain", or the id of a weight layout such as "x16k2.bf16/1"
  std::uint64_t offset = 0;         ///< from the start of the file; a multiple of 64
  std::size_t size_bytes = 0;       ///< product of shape x element_bytes(type)
  const std::byte* data = nullptr;  ///< set by WeightsFile: 64-byte aligned, read-only, valid while it lives
};

/// The fixed 64 bytes at the start of the file.
struct WeightsHeader {
  static constexpr std::size_t size_bytes = 64;

  std::uint32_t tensor_count = 0;
  std::uint64_t index_size = 0;   ///< bytes of the index, which follows the header
  std::uint64_t data_offset = 0;  ///< where the data starts; a multiple of 2 MiB
  std::uint64_t file_size = 0;
  std::uint32_t index_crc32 = 0;
};

/// Reads and checks the header. `start` is the first 64 bytes of the file, or all of a shorter one; `file_size` is the
/// file's real size; `source` names it in messages. Throws Error(corrupt_engine), or Error(unsupported_engine) for
/// another version.
WeightsHeader read_weights_header(std::span<const std::byte> start, std::uint64_t file_size, const std::string& source);

/// Reads and checks the index: `index` is exactly header.index_size bytes. Entries come in the order of the file, which
/// is ascending in offset; their names are distinct; `data` is null. Throws Error(corrupt_engine).
std::vector<TensorEntry> read_weights_index(std::span<const std::byte> index, const WeightsHeader& header,
                                            const std::string& source);

/// Positions in `tensors`, ascending in name.
std::vector<std::size_t> order_by_name(std::span<const TensorEntry> tensors);

}  // namespace precast
