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

std::string device_manifest_text(const DevicePlan& plan) {
  const std::string sha256(64, 'a');
  std::string ranks;
  std::string files;
  for (int rank = 0; rank < plan.world_size(); ++rank) {
    const std::string comma = rank == 0 ? "" : ", ";
    const std::string graph = "rank" + std::to_string(rank) + "/model.plan";
    ranks += comma + R"({"graph": ")" + graph + R"(", "weights": null,
             "kv_groups": [{"block_tables": "block_tables.0", "window": null}],
             "kv_caches": [{"block_bytes": 64, "group": 0, "layout": "kv4.f16/1", "name": "kv.0"}]})";
    files += comma + "\"" + graph + R"(": {"sha256": ")" + sha256 + R"(", "size": 4})";
  }
  return R"({
  "backend": "tensorrt",
  "backend_requirements": {"library": "tensorrt_rtx", "library_version": "1.2", "max_batch_size": )" +
         std::to_string(plan.max_batch_size) + R"(,
                           "max_num_tokens": )" + std::to_string(plan.max_num_tokens) +
         R"(, "min_capability": 89, "quantization": null, "targets": ["sm89"]},
  "batch_invariant": false,
  "build": {"dtype": "float16", "kv_cache_dtype": "float16", "max_seq_len": null, "notes": [], "tokens_per_block": 4},
  "files": {)" + files + R"(},
  "format": 1,
  "mapping": {"pipeline_parallel_size": )" + std::to_string(plan.pipeline_parallel_size) + R"(, "tensor_parallel_size": )" +
         std::to_string(plan.tensor_parallel_size) + R"(, "world_size": )" + std::to_string(plan.world_size()) + R"(},
  "model": {"architecture": "DeviceForTests", "bos_token_id": null, "eos_token_ids": [], "hidden_size": 8,
            "max_seq_len": 64, "num_layers": 1, "pad_token_id": null, "vocab_size": 40},
  "precast_version": "0.1.0",
  "ranks": [)" + ranks + R"(],
  "reproducible": false,
  "requires": ["kv4.f16/1"]
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
