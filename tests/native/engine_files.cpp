#include "tests/native/engine_files.h"

#include <cstdlib>
#include <utility>

namespace precast::test {

TemporaryDirectory::TemporaryDirectory() {
  std::string name = (std::filesystem::temp_directory_path() / "precast-test-XXXXXX").string();
  if (::mkdtemp(name.data()) == nullptr) throw Failure("cannot make " + name);
  path_ = name;
}

TemporaryDirectory::~TemporaryDirectory() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

std::filesystem::path TemporaryDirectory::write(const std::string& name, std::string_view content) const {
  const std::filesystem::path path = path_ / name;
  std::filesystem::create_directories(path.parent_path());
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(content.data(), static_cast<std::streamsize>(content.size()));
  file.close();
  if (!file) throw Failure("cannot write " + path.string());
  return path;
}

std::string Record::bytes() const {
  const auto length = [](const auto& part) { return little_endian(static_cast<std::uint32_t>(part.size())); };
  std::string bytes = length(name) + length(type) + length(layout) + length(shape);
  for (const std::uint64_t extent : shape) bytes += little_endian(extent);
  bytes += little_endian(offset) + little_endian(size) + name + type + layout;
  bytes.append((8 - bytes.size() % 8) % 8, '\0');
  return bytes;
}

std::string Header::bytes() const {
  std::string bytes = "PRECASTW" + little_endian(version) + little_endian(tensor_count) + little_endian(index_size) +
                      little_endian(data_offset) + little_endian(file_size) + little_endian(index_crc32) +
                      std::string(16, '\0');
  return bytes + little_endian(crc32(as_bytes(bytes)));
}

std::string manifest_text() {
  const std::string sha256(64, 'a');
  return R"({
  "backend": "onnxruntime",
  "backend_requirements": {"ir_version": 10, "onnxruntime_min": "1.23", "opset": 20},
  "batch_invariant": true,
  "build": {"dtype": "bfloat16", "kv_cache_dtype": "float32", "max_seq_len": null, "notes": ["a \u00fc", "b"],
            "tokens_per_block": 16},
  "files": {"weights": {"sha256": ")" +
         sha256 + R"(", "size": 6}, "graph": {"sha256": ")" + sha256 + R"(", "size": 5}},
  "format": 1,
  "mapping": {"pipeline_parallel_size": 1, "tensor_parallel_size": 1, "world_size": 1},
  "model": {"architecture": "LlamaForCausalLM", "bos_token_id": 1, "eos_token_ids": [2, 3], "hidden_size": 8,
            "max_seq_len": 64, "num_layers": 1, "pad_token_id": null, "vocab_size": 32},
  "precast_version": "0.1.0",
  "ranks": [{"graph": "graph",
             "kv_caches": [{"block_bytes": 4096, "group": 0, "layout": "kv16.f32/1", "name": "kv.0"},
                           {"block_bytes": 64, "group": 0, "layout": "kv16.f32/1", "name": "kv.1"},
                           {"block_bytes": 4096, "group": 1, "layout": "kv16.f32/1", "name": "kv.2"}],
             "kv_groups": [{"block_tables": "block_tables.0", "window": null},
                           {"block_tables": "block_tables.1", "window": 32}],
             "weights": "weights"}],
  "reproducible": false,
  "requires": ["ai.precast.Linear/1", "kv16.f32/1"]
}
)";
}

RuntimeSupport tiny_support() {
  return {.supports = [](std::string_view name) { return name == "ai.precast.Linear/1" || name == "kv16.f32/1"; },
          .backends = {"onnxruntime"},
          .max_world_size = 1};
}

std::string replaced(std::string text, std::string_view from, std::string_view to) {
  const std::size_t position = text.find(from);
  if (position == std::string::npos || text.find(from, position + 1) != std::string::npos) {
    throw Failure("expected once: " + std::string(from));
  }
  return text.replace(position, from.size(), to);
}

}  // namespace precast::test
