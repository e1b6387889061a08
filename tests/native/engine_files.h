// Engine files made by hand, byte by byte as docs/engine_format.md says, for the tests of their readers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/native/src/crc32.h"
#include "runtime/native/src/engine_manifest.h"
#include "runtime/native/src/error.h"
#include "tests/native/check.h"

namespace precast::test {

/// What the Error thrown by `action` says, or "nothing was thrown".
template <typename F>
std::string refusal(F&& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "nothing was thrown";
}

/// The code of the Error thrown by `action`, 0 if none is.
template <typename F>
int refusal_code(F&& action) {
  try {
    action();
  } catch (const Error& error) {
    return static_cast<int>(error.code());
  }
  return 0;
}

inline bool starts_with(const std::string& text, std::string_view start) { return text.rfind(start, 0) == 0; }

inline std::span<const std::byte> as_bytes(std::string_view text) { return std::as_bytes(std::span(text)); }

/// A fresh directory, deleted with everything in it at the end.
class TemporaryDirectory {
 public:
  TemporaryDirectory();
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
  ~TemporaryDirectory();

  const std::filesystem::path& path() const { return path_; }

  /// Writes a file, with the directories above it; returns its path.
  std::filesystem::path write(const std::string& name, std::string_view content) const;

 private:
  std::filesystem::path path_;
};

// --- weights.bin ---

inline constexpr std::uint64_t data_start = std::uint64_t{2} << 20;

/// `value`'s bytes, little-endian.
template <typename T>
std::string little_endian(T value) {
  std::string bytes;
  for (std::size_t i = 0; i < sizeof(T); ++i) bytes += static_cast<char>((value >> (8 * i)) & 0xFF);
  return bytes;
}

struct Record {
  std::string name = "a";
  std::string type = "float32";
  std::string layout = "plain";
  std::vector<std::uint64_t> shape = {4, 4};
  std::uint64_t offset = data_start;
  std::uint64_t size = 64;

  std::string bytes() const;
};

/// The header around an index; the defaults are right for one Record as above.
struct Header {
  std::uint32_t version = 1;
  std::uint32_t tensor_count = 1;
  std::uint64_t index_size = 0;
  std::uint64_t data_offset = data_start;
  std::uint64_t file_size = data_start + 64;
  std::uint32_t index_crc32 = 0;

  explicit Header(std::string_view index)
      : index_size(index.size()), index_crc32(crc32(as_bytes(index))) {}

  std::string bytes() const;
};

// --- engine.json ---

/// A manifest with every member, which lists "graph" (5 bytes) and "weights" (6 bytes).
std::string manifest_text();

/// Supports the tiny manifest's `requires`, onnxruntime and one rank.
RuntimeSupport tiny_support();

/// An engine for TensorRT: how it was built.
struct DevicePlan {
  int tensor_parallel_size = 1;
  int pipeline_parallel_size = 1;
  int max_batch_size = 4;
  int max_num_tokens = 8;

  int world_size() const { return tensor_parallel_size * pipeline_parallel_size; }
};

/// Its manifest: a vocabulary of 40, sequences of 64 tokens, blocks of 4. Lists "rank0/model.plan" (4 bytes), and of further
/// ranks the same.
std::string device_manifest_text(const DevicePlan& plan);

/// `text` with its only occurrence of `from` replaced.
std::string replaced(std::string text, std::string_view from, std::string_view to);

}  // namespace precast::test
