#pragma once

#include <cstddef>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/native/src/mapped_file.h"
#include "runtime/native/src/weights_index.h"

namespace precast {

/// A mapped weights.bin, the packed tensors of one rank. Its header and index have been checked; the tensors' own bytes
/// have not been touched. Immutable, so safe for any number of threads.
class WeightsFile {
 public:
  /// Throws Error: not_found, io, corrupt_engine or unsupported_engine.
  static WeightsFile open(const std::filesystem::path& path);

  /// All tensors, ascending in offset.
  std::span<const TensorEntry> tensors() const noexcept { return tensors_; }

  /// Throws Error(corrupt_engine) that names the file and the tensor where there is none.
  const TensorEntry& find(std::string_view name) const;

  const MappedFile& file() const noexcept { return file_; }

 private:
  WeightsFile(std::string source, MappedFile file, std::vector<TensorEntry> tensors);

  std::string source_;
  MappedFile file_;
  std::vector<TensorEntry> tensors_;
  std::vector<std::size_t> by_name_;
};

}  // namespace precast
