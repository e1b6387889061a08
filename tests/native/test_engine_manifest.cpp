#include <sys/stat.h>

#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "runtime/native/src/engine_manifest.h"
#include "runtime/native/src/version.h"
#include "tests/native/check.h"
#include "tests/native/engine_files.h"

using namespace precast;
using precast::test::device_manifest_text;
using precast::test::manifest_text;
using precast::test::refusal;
using precast::test::refusal_code;
using precast::test::replaced;
using precast::test::TemporaryDirectory;
using precast::test::tiny_support;

namespace {

EngineManifest parse(std::string_view text) { return parse_manifest(text, "engine.json", tiny_support()); }
std::string complaint(std::string_view text) {
  return refusal([&] { parse(text); });
}
std::string complaint(std::string_view from, std::string_view to) {
  return complaint(replaced(manifest_text(), from, to));
}

/// An engine directory of the tiny manifest.
void write_engine(const TemporaryDirectory& directory) {
  directory.write("engine.json", manifest_text());
  directory.write("graph", "12345");
  directory.write("weights", "123456");
}

std::string directory_complaint(const std::filesystem::path& path) {
  return refusal([&] { read_manifest(path, tiny_support()); });
}

int directory_code(const std::filesystem::path& path) {
  return refusal_code([&] { read_manifest(path, tiny_support()); });
}

}  // namespace

TEST("engine manifest: every field is read") {
  const EngineManifest manifest = parse(manifest_text());
  CHECK_EQ(manifest.precast_version, "0.1.0");
  CHECK_EQ(manifest.required_names.size(), 2U);
  CHECK_EQ(manifest.required_names[1], "kv16.f32/1");
  CHECK_EQ(manifest.backend, "onnxruntime");
  CHECK_EQ(manifest.onnxruntime->onnxruntime_min, "1.23");
  CHECK_EQ(manifest.onnxruntime->ir_version, 10);
  CHECK_EQ(manifest.onnxruntime->opset, 20);
  CHECK(manifest.batch_invariant);
  CHECK(!manifest.reproducible);
  CHECK_EQ(manifest.model.architecture, "LlamaForCausalLM");
  CHECK_EQ(manifest.model.vocab_size, 32);
  CHECK_EQ(manifest.model.hidden_size, 8);
  CHECK_EQ(manifest.model.num_layers, 1);
  CHECK_EQ(manifest.model.max_seq_len, 64);
  CHECK_EQ(manifest.model.bos_token_id.value(), 1);
  CHECK((manifest.model.eos_token_ids == std::vector<std::int64_t>{2, 3}));
  CHECK(!manifest.model.pad_token_id.has_value());
  CHECK_EQ(manifest.build.dtype, "bfloat16");
  CHECK_EQ(manifest.build.kv_cache_dtype, "float32");
  CHECK_EQ(manifest.build.tokens_per_block, 16);
  CHECK((manifest.build.notes == std::vector<std::string>{"a \u00fc", "b"}));
  CHECK_EQ(manifest.mapping.world_size, 1);
  CHECK_EQ(manifest.mapping.tensor_parallel_size, 1);
  CHECK_EQ(manifest.mapping.pipeline_parallel_size, 1);
  CHECK_EQ(manifest.ranks.size(), 1U);
  CHECK_EQ(manifest.ranks[0].graph, "graph");
  CHECK_EQ(manifest.ranks[0].weights, "weights");
  CHECK_EQ(manifest.ranks[0].kv_groups.size(), 2U);
  CHECK_EQ(manifest.ranks[0].kv_groups[0].block_tables, "block_tables.0");
  CHECK(!manifest.ranks[0].kv_groups[0].window.has_value());
  CHECK_EQ(manifest.ranks[0].kv_groups[1].block_tables, "block_tables.1");
  CHECK_EQ(manifest.ranks[0].kv_groups[1].window.value(), 32);
  CHECK_EQ(manifest.ranks[0].kv_caches.size(), 3U);
  CHECK_EQ(manifest.ranks[0].kv_caches[0].name, "kv.0");
  CHECK_EQ(manifest.ranks[0].kv_caches[0].layout, "kv16.f32/1");
  CHECK_EQ(manifest.ranks[0].kv_caches[0].block_bytes, 4096);
  CHECK_EQ(manifest.ranks[0].kv_caches[0].group, 0U);
  CHECK_EQ(manifest.ranks[0].kv_caches[2].group, 1U);
  CHECK_EQ(manifest.files.size(), 2U);
  CHECK_EQ(manifest.files[0].path, "graph");  // ascending, whatever the order in the document
  CHECK_EQ(manifest.files[1].size_bytes, 6U);
  CHECK_EQ(manifest.files[1].sha256, std::string(64, 'a'));
}

TEST("engine manifest: of an engine for TensorRT the limits are read, and its weights may lie in the plan") {
  RuntimeSupport support = tiny_support();
  support.supports = [](std::string_view) { return true; };
  support.backends = {"onnxruntime", "tensorrt"};
  support.max_world_size = 6;
  const std::string text = device_manifest_text({.tensor_parallel_size = 3, .pipeline_parallel_size = 2});
  const auto parse_device = [&](std::string_view from) { return parse_manifest(from, "engine.json", support); };
  const auto device_complaint = [&](std::string_view from, std::string_view to) {
    return refusal([&] { parse_device(replaced(device_manifest_text({}), from, to)); });
  };
  const EngineManifest manifest = parse_device(text);
  CHECK_EQ(manifest.backend, "tensorrt");
  CHECK(!manifest.onnxruntime.has_value());
  CHECK_EQ(manifest.device->max_batch_size, 4);
  CHECK_EQ(manifest.device->max_num_tokens, 8);
  CHECK_EQ(manifest.ranks.size(), 6U);
  CHECK_EQ(manifest.ranks[5].graph, "rank5/model.plan");
  CHECK_EQ(manifest.ranks[5].weights, "");
  CHECK_EQ(parse_device(replaced(device_manifest_text({}), "\"weights\": null", "\"weights\": \"rank0/model.plan\""))
               .ranks[0].weights, "rank0/model.plan");
  CHECK(!parse(manifest_text()).device.has_value());

  CHECK_EQ(device_complaint("\"max_batch_size\": 4,", ""), "engine.json: backend_requirements.max_batch_size is missing");
  CHECK_EQ(device_complaint("\"max_num_tokens\": 8,", ""), "engine.json: backend_requirements.max_num_tokens is missing");
  CHECK_EQ(device_complaint("\"max_batch_size\": 4", "\"max_batch_size\": 0"),
           "engine.json: backend_requirements.max_batch_size must be at least 1, got 0");
  CHECK_EQ(device_complaint("\"max_num_tokens\": 8", "\"max_num_tokens\": 2147483648"),
           "engine.json: backend_requirements.max_num_tokens must be at most 2147483647, got 2147483648");
  CHECK_EQ(device_complaint("\"weights\": null", "\"weights\": 1"),
           "engine.json: ranks[0].weights must be a string, got an integer");
  CHECK_EQ(complaint("\"weights\": \"weights\"", "\"weights\": null"),
           "engine.json: ranks[0].weights must be a string, got null");
}

TEST("engine manifest: of an engine for ONNX Runtime on GPUs the limits are read, and its weights must lie beside the graph") {
  RuntimeSupport support = tiny_support();
  support.supports = [](std::string_view) { return true; };
  support.backends = {"onnxruntime", "onnxruntime-cuda"};
  support.max_world_size = 2;
  const std::string without_weights = replaced(device_manifest_text({}), "\"tensorrt\"", "\"onnxruntime-cuda\"");
  const std::string text = replaced(without_weights, "\"weights\": null", "\"weights\": \"rank0/model.plan\"");
  const auto parse_device = [&](std::string_view from) { return parse_manifest(from, "engine.json", support); };
  const auto device_complaint = [&](std::string_view from, std::string_view to) {
    return refusal([&] { parse_device(replaced(text, from, to)); });
  };
  const EngineManifest manifest = parse_device(text);
  CHECK_EQ(manifest.backend, "onnxruntime-cuda");
  CHECK(!manifest.onnxruntime.has_value());
  CHECK_EQ(manifest.device->max_batch_size, 4);
  CHECK_EQ(manifest.device->max_num_tokens, 8);
  CHECK_EQ(manifest.ranks[0].weights, "rank0/model.plan");

  CHECK_EQ(refusal([&] { parse_device(without_weights); }), "engine.json: ranks[0].weights must be a string, got null");
  CHECK_EQ(device_complaint("\"weights\": \"rank0/model.plan\"", "\"weights\": \"weights.bin\""),
           "engine.json: ranks[0].weights must be a path listed in files, got \"weights.bin\"");
  CHECK_EQ(device_complaint("\"max_batch_size\": 4,", ""), "engine.json: backend_requirements.max_batch_size is missing");
  CHECK_EQ(device_complaint("\"max_num_tokens\": 8,", ""), "engine.json: backend_requirements.max_num_tokens is missing");
  CHECK_EQ(device_complaint("\"max_num_tokens\": 8", "\"max_num_tokens\": 0"),
           "engine.json: backend_requirements.max_num_tokens must be at least 1, got 0");
}

TEST("engine manifest: members of the future are ignored") {
  parse(replaced(manifest_text(), "\"format\": 1", "\"format\": 1, \"colour\": {\"of\": \"the sky\"}"));
  parse(replaced(manifest_text(), "\"vocab_size\": 32", "\"vocab_size\": 32, \"colour\": 1.5"));
}

TEST("engine manifest: a newer format is named before anything else is read") {
  CHECK_EQ(complaint(R"({"format": 2, "precast_version": "9.1"})"),
           std::string("engine.json: engine format 2 of precast 9.1 is newer than format 1, which this precast ") +
               version() + " reads: update precast, or rebuild the engine with this version");
  CHECK_EQ(refusal_code([] { parse(R"({"format": 3})"); }), static_cast<int>(ErrorCode::unsupported_engine));
}

TEST("engine manifest: everything unknown in requires is named before the rest is read") {
  const std::string text = R"({"format": 1, "backend": "onnxruntime",
                               "requires": ["ai.precast.Linear/1", "ai.precast.New/7", "x9/1"]})";
  CHECK_EQ(complaint(text),
           std::string("engine.json: the engine requires ai.precast.New/7, x9/1, which this precast ") + version() +
               " does not have: update precast, or rebuild the engine with this version");
  CHECK_EQ(refusal_code([&] { parse(text); }), static_cast<int>(ErrorCode::unsupported_engine));
}

TEST("engine manifest: backend and world size come before the rest") {
  CHECK_EQ(complaint(R"({"format": 1, "requires": [], "backend": "tensorrt"})"),
           "engine.json: the engine was built for the backend tensorrt, this runtime has onnxruntime: "
           "rebuild the engine for one of these");
  CHECK_EQ(complaint(R"({"format": 1, "requires": [], "backend": "onnxruntime", "mapping":
             {"world_size": 6, "tensor_parallel_size": 2, "pipeline_parallel_size": 3}})"),
           "engine.json: the engine was built for 6 ranks, this runtime runs at most 1: rebuild the engine for fewer");
}

TEST("engine manifest: every rule has its sentence") {
  const std::string name = "printable ASCII without spaces, got ";
  const std::string digits(63, 'a');
  CHECK_EQ(complaint("[]"), "engine.json: the document must be an object, got an array");
  CHECK_EQ(complaint("{}"), "engine.json: format is missing");
  CHECK_EQ(complaint("\"format\": 1", "\"format\": \"1\""), "engine.json: format must be an integer, got a string");
  CHECK_EQ(complaint("\"format\": 1", "\"format\": 0"), "engine.json: format must be at least 1, got 0");
  CHECK_EQ(complaint("\"ai.precast.Linear/1\"", "\"a b\""), "engine.json: requires[0] must be " + name + "\"a b\"");
  CHECK_EQ(complaint("\"onnxruntime\",", "\"\","), "engine.json: backend must be " + name + "\"\"");
  CHECK_EQ(complaint("\"opset\": 20", "\"opset\": 0"),
           "engine.json: backend_requirements.opset must be at least 1, got 0");
  CHECK_EQ(complaint("\"batch_invariant\": true", "\"batch_invariant\": 1"),
           "engine.json: batch_invariant must be a boolean, got an integer");
  CHECK_EQ(complaint("\"world_size\": 1", "\"world_size\": 2"),
           "engine.json: mapping.world_size must be tensor_parallel_size x pipeline_parallel_size = 1, got 2");
  CHECK_EQ(complaint("\"tensor_parallel_size\": 1", "\"tensor_parallel_size\": 32769"),
           "engine.json: mapping.tensor_parallel_size must be at most 32768, got 32769");
  CHECK_EQ(complaint("\"vocab_size\": 32", "\"vocab_size\": \"32\""),
           "engine.json: model.vocab_size must be an integer, got a string");
  CHECK_EQ(complaint("\"max_seq_len\": 64", "\"max_seq_len\": 2147483648"),
           "engine.json: model.max_seq_len must be at most 2147483647, got 2147483648");
  CHECK_EQ(complaint("[2, 3]", "[2, -1]"), "engine.json: model.eos_token_ids[1] must be at least 0, got -1");
  CHECK_EQ(complaint("\"bos_token_id\": 1, ", ""), "engine.json: model.bos_token_id is missing");
  CHECK_EQ(complaint("LlamaForCausalLM", "\u00e4"), "engine.json: model.architecture must be " + name + "\"\u00e4\"");
  CHECK_EQ(complaint("\"tokens_per_block\": 16", "\"tokens_per_block\": 0"),
           "engine.json: build.tokens_per_block must be at least 1, got 0");
  CHECK_EQ(complaint("\"max_seq_len\": null", "\"max_seq_len\": 0"),
           "engine.json: build.max_seq_len must be at least 1, got 0");
  CHECK_EQ(complaint("\"b\"]", "2]"), "engine.json: build.notes[1] must be a string, got an integer");
  CHECK_EQ(complaint("\"size\": 5", "\"size\": -1"), "engine.json: files.graph.size must be at least 0, got -1");
  CHECK_EQ(complaint("a\", \"size\": 5", "\", \"size\": 5"),
           "engine.json: files.graph.sha256 must be 64 lower-case hexadecimal digits, got \"" + digits + "\"");
  CHECK_EQ(complaint("a\", \"size\": 5", "A\", \"size\": 5"),
           "engine.json: files.graph.sha256 must be 64 lower-case hexadecimal digits, got \"" + digits + "A\"");
  CHECK_EQ(complaint("\"graph\": {", "\"engine.json\": {"), "engine.json: files[\"engine.json\"] must not be listed");
  CHECK_EQ(complaint("\"graph\": {", "\"verification.json\": {"),
           "engine.json: files[\"verification.json\"] must not be listed");
  CHECK_EQ(complaint("\"graph\": \"graph\"", "\"graph\": \"../etc/passwd\""),
           "engine.json: ranks[0].graph must be a path listed in files, got \"../etc/passwd\"");
  CHECK_EQ(complaint("\"block_bytes\": 64", "\"block_bytes\": 0"),
           "engine.json: ranks[0].kv_caches[1].block_bytes must be at least 1, got 0");
  CHECK_EQ(complaint("\"kv.1\"", "\"kv.0\""),
           "engine.json: ranks[0].kv_caches[1].name must differ from the names before it, got \"kv.0\"");
  CHECK_EQ(complaint("\"kv.1\"", "\"block_tables.1\""),
           "engine.json: ranks[0].kv_caches[1].name must differ from the names before it, got \"block_tables.1\"");
  CHECK_EQ(complaint("\"ranks\": [", "\"ranks\": [], \"future\": ["),
           "engine.json: ranks must have mapping.world_size = 1 elements, got 0");
}

TEST("engine manifest: every rule of KV groups has its sentence") {
  const std::string rank = "engine.json: ranks[0].";
  CHECK_EQ(complaint("\"window\": 32", "\"window\": 0"), rank + "kv_groups[1].window must be at least 1, got 0");
  CHECK_EQ(complaint("\"window\": 32", "\"window\": null"),
           rank + "kv_groups[1].window must not be null behind the first group");
  CHECK_EQ(complaint("\"window\": null", "\"window\": 32"),
           rank + "kv_groups[1].window must be greater than 32 before it, got 32");
  CHECK_EQ(complaint("\"window\": 32", "\"colour\": 32"), rank + "kv_groups[1].window is missing");
  CHECK_EQ(complaint("block_tables.1", "block_tables.0"),
           rank + "kv_groups[1].block_tables must differ from the names before it, got \"block_tables.0\"");
  CHECK_EQ(complaint("block_tables.1", "block tables"),
           rank + "kv_groups[1].block_tables must be printable ASCII without spaces, got \"block tables\"");
  CHECK_EQ(complaint("\"group\": 1", "\"group\": 2"), rank + "kv_caches[2].group must be less than the 2 kv_groups, got 2");
  CHECK_EQ(complaint("\"group\": 1", "\"group\": -1"), rank + "kv_caches[2].group must be at least 0, got -1");
  CHECK_EQ(complaint("\"group\": 1", "\"group\": 0"), rank + "kv_groups[1] must be the group of an element of a rank's kv_caches");
  CHECK_EQ(complaint("\"block_bytes\": 4096, \"group\": 1", "\"block_bytes\": 64, \"group\": 1"),
           rank + "kv_caches[2] must have the layout and block_bytes of kv_caches[0], whose memory it shares, kv16.f32/1 "
                  "and 4096, got kv16.f32/1 and 64");
  CHECK_EQ(complaint("\"layout\": \"kv16.f32/1\", \"name\": \"kv.2\"", "\"layout\": \"l\", \"name\": \"kv.2\""),
           rank + "kv_caches[2] must have the layout and block_bytes of kv_caches[0], whose memory it shares, kv16.f32/1 "
                  "and 4096, got l and 4096");
}

TEST("engine manifest: a model without attention has no KV groups") {
  const std::string text = manifest_text();
  const std::size_t begin = text.find("\"kv_caches\"");
  const std::size_t end = text.find("\"weights\": \"weights\"", begin);
  const EngineManifest manifest =
      parse(text.substr(0, begin) + "\"kv_caches\": [], \"kv_groups\": [], " + text.substr(end));
  CHECK(manifest.ranks[0].kv_groups.empty());
  CHECK(manifest.ranks[0].kv_caches.empty());
}

TEST("KV groups: windows, and pages of the memories that groups share") {
  const std::vector<KvGroupSpec> groups{{"a", std::nullopt}, {"b", 5}};
  CHECK((kv_group_windows(groups) == std::vector<std::int64_t>{0, 5}));
  const std::vector<KvCacheSpec> caches{{"0", "l", 10, 1}, {"1", "l", 10, 0}, {"2", "l", 7, 1}, {"3", "l", 3, 1}};
  CHECK((kv_memory_indices(caches) == std::vector<std::size_t>{0, 0, 1, 2}));
  CHECK_EQ(kv_page_bytes(caches), 20U);
  CHECK_EQ(kv_page_bytes({}), 0U);
}

TEST("engine manifest: paths stay inside the directory") {
  for (const std::string path : {"../x", "a/../../x", "/etc/passwd", "a//b", "a/", "./a", "a/.", "", ".", "..", "/",
                                 R"(a\\b)", R"(a\u0000b)", R"(a\nb)", "\x7f"}) {
    const std::string text = complaint("\"graph\": {", "\"" + path + "\": {");
    CHECK(text.find("] must have a relative path inside the engine directory as its name") != std::string::npos);
  }
  for (const std::string path : {"a/b.c", "...", "..a", "a..", "tokenizer/\u00e4 \u00f6.json"}) {
    const std::string text = replaced(manifest_text(), "\"graph\": {", "\"" + path + "\": {");
    CHECK_EQ(parse(replaced(text, "\"graph\": \"graph\"", "\"graph\": \"" + path + "\"")).ranks[0].graph, path);
  }
}

TEST("engine manifest: a directory is read, its files are checked") {
  const TemporaryDirectory directory;
  write_engine(directory);
  const EngineManifest manifest = read_manifest(directory.path(), tiny_support());
  CHECK_EQ(manifest.directory, directory.path());

  const std::string root = directory.path().string();
  directory.write("graph", "1234");
  CHECK_EQ(directory_complaint(root),
           root + "/graph: is 4 bytes, engine.json says 5: copy the engine again or rebuild it");
  std::filesystem::remove(root + "/graph");
  CHECK_EQ(directory_complaint(root),
           root + "/graph: missing, engine.json lists it with 5 bytes: copy the engine again or rebuild it");
  std::filesystem::create_directory(root + "/graph");
  CHECK_EQ(directory_complaint(root), root + "/graph: not a regular file, engine.json lists it as one");
  CHECK_EQ(directory_code(root), static_cast<int>(ErrorCode::corrupt_engine));
  std::filesystem::remove(root + "/graph");
  directory.write("blobs/graph", "12345");
  std::filesystem::create_symlink("blobs/graph", root + "/graph");  // as download caches do
  read_manifest(root, tiny_support());
}

TEST("engine manifest: what is not an engine") {
  const TemporaryDirectory directory;
  const std::string root = directory.path().string();
  CHECK_EQ(directory_complaint(root), root + ": not an engine directory, it has no engine.json");
  directory.write("config.json", "{}");
  CHECK_EQ(directory_complaint(root),
           root + ": not an engine directory, it has no engine.json; it looks like a Hugging Face checkpoint: build an "
                  "engine from it first");
  CHECK_EQ(directory_complaint(root + "/absent"), root + "/absent: no such directory");
  CHECK_EQ(directory_complaint(root + "/config.json"),
           root + "/config.json: not a directory; an engine is a directory with an engine.json");
  CHECK_EQ(directory_code(root), static_cast<int>(ErrorCode::not_found));
}

TEST("engine manifest: an engine.json that is no ordinary file") {
  const TemporaryDirectory directory;
  const std::string path = (directory.path() / "engine.json").string();
  std::filesystem::create_directory(path);
  CHECK_EQ(directory_complaint(directory.path()), path + ": not a regular file");
  std::filesystem::remove(path);
  CHECK_EQ(::mkfifo(path.c_str(), 0600), 0);
  CHECK_EQ(directory_complaint(directory.path()), path + ": not a regular file");
  CHECK_EQ(directory_code(directory.path()), static_cast<int>(ErrorCode::io));
  std::filesystem::remove(path);
  directory.write("engine.json", "");
  CHECK_EQ(directory_complaint(directory.path()), path + ":1:1: expected a value, got the end of the document");
  std::filesystem::resize_file(path, std::uintmax_t{100} << 20);
  CHECK_EQ(directory_complaint(directory.path()), path + ": 104857600 bytes, the limit is 16777216");
}
