#include "runtime/native/src/weights_file.h"

#include <algorithm>
#include <utility>

#include "runtime/native/src/concat.h"
#include "runtime/native/src/error.h"

namespace precast {

WeightsFile WeightsFile::open(const std::filesystem::path& path) {
  const std::string source = path.string();
  MappedFile file = MappedFile::open(path);
  const std::span<const std::byte> bytes = file.bytes();
  const WeightsHeader header =
      read_weights_header(bytes.first(std::min(bytes.size(), WeightsHeader::size_bytes)), bytes.size(), source);
  std::vector<TensorEntry> tensors =
      read_weights_index(bytes.subspan(WeightsHeader::size_bytes, header.index_size), header, source);
  for (TensorEntry& tensor : tensors) tensor.data = bytes.subspan(tensor.offset, tensor.size_bytes).data();
  return {source, std::move(file), std::move(tensors)};
}

WeightsFile::WeightsFile(std::string source, MappedFile file, std::vector<TensorEntry> tensors)
    : source_(std::move(source)),
      file_(std::move(file)),
      tensors_(std::move(tensors)),
      by_name_(order_by_name(tensors_)) {}

const TensorEntry& WeightsFile::find(std::string_view name) const {
  const auto name_of = [&](std::size_t i) -> std::string_view { return tensors_[i].name; };
  const auto found = std::ranges::lower_bound(by_name_, name, {}, name_of);
  if (found == by_name_.end() || name_of(*found) != name) {
    throw Error(ErrorCode::corrupt_engine, concat(source_, ": has no tensor ", quote(name), ": rebuild the engine"));
  }
  return tensors_[*found];
}

}  // namespace precast
