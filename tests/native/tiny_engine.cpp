#include "tests/native/tiny_engine.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <optional>
#include <set>

#include "plugins/cpu/bf16.h"
#include "tests/native/attention_world.h"
#include "tests/native/kernel_inputs.h"

namespace precast::test {
namespace {

constexpr std::int64_t qkv_features = (TinyEngine::num_heads + 2) * TinyEngine::head_dim;  // one KV head

std::string float_bytes(const std::vector<float>& values) {
  std::string bytes;
  for (const float value : values) bytes += little_endian(std::bit_cast<std::uint32_t>(value));
  return bytes;
}

}  // namespace

TinyEngine::TinyEngine(bool bf16, std::array<std::int64_t, num_layers> windows) : bf16_(bf16) {
  for (const std::int64_t window : std::set(windows.begin(), windows.end())) {
    const auto optional_window = window == 0 ? std::nullopt : std::optional(window);
    kv_groups_.push_back({"block_tables." + std::to_string(kv_groups_.size()), optional_window});
  }
  for (const std::int64_t window : windows) {
    const auto is_same = [&](const KvGroupSpec& group) { return group.window.value_or(0) == window; };
    const auto group = std::find_if(kv_groups_.begin(), kv_groups_.end(), is_same) - kv_groups_.begin();
    kv_caches_.push_back({"kv." + std::to_string(kv_caches_.size()), bf16_ ? "kv16.bf16/1" : "kv16.f32/1",
                          2 * tokens_per_block * head_dim * (bf16_ ? 2 : 4), static_cast<std::size_t>(group)});
  }
  add_inputs();
  add_linear("embedding", vocab_size);
  const std::string layout = bf16_ ? "x16k2.bf16/1" : "x16k1.f32/1";
  graph.nodes.push_back({"Embedding",
                         {"token_ids", "embedding"},
                         {"x.0"},
                         {{"rows", vocab_size},
                          {"features", hidden_size},
                          {"layout", layout},
                          {"row_start", std::int64_t{0}},
                          {"is_slice", std::int64_t{0}}}});
  const std::vector<float> frequencies = inverse_frequencies(head_dim);
  add_weight("inv_freq", "plain", {1, frequencies.size()}, float_bytes(frequencies));
  for (std::int64_t i = 0; i < num_layers; ++i) add_layer(i);
  const std::string last = "x." + std::to_string(num_layers);
  graph.nodes.push_back({"Gather", {last, "logit_rows"}, {"rows"}, {{"axis", std::int64_t{0}}}, ""});
  graph.nodes.push_back(linear_node("rows", "embedding", "logits", vocab_size));
  graph.outputs = {{"logits", onnx_float32, {"R", vocab_size}}};
}

void TinyEngine::add_inputs() {
  graph.inputs = {{"token_ids", onnx_int32, {"T"}},
                  {"query_starts", onnx_int32, {"S_plus_1"}},
                  {"context_lengths", onnx_int32, {"S"}},
                  {"logit_rows", onnx_int32, {"R"}}};
  for (const KvGroupSpec& group : kv_groups_) {
    graph.inputs.push_back({group.block_tables, onnx_int32, {"S", "B"}});
  }
}

void TinyEngine::add_layer(std::int64_t layer) {
  const std::string name = std::to_string(layer);
  const std::string next = "x." + std::to_string(layer + 1);
  const KvCacheSpec& cache = kv_caches_[static_cast<std::size_t>(layer)];
  const KvGroupSpec& group = kv_groups_[cache.group];
  graph.inputs.push_back({cache.name, onnx_uint8, {"num_blocks", cache.block_bytes}});
  add_norm("norm." + name);
  add_linear("qkv." + name, qkv_features);
  add_linear("o." + name, hidden_size);
  graph.nodes.push_back({"RmsNorm", {"x." + name, "norm." + name}, {"n." + name}, {{"epsilon", 1e-5f}}});
  graph.nodes.push_back(linear_node("n." + name, "qkv." + name, "qkv_rows." + name, qkv_features));
  graph.nodes.push_back({"PagedAttention",
                         {"qkv_rows." + name, "query_starts", "context_lengths", group.block_tables, cache.name, "inv_freq"},
                         {"a." + name},
                         {{"num_heads", num_heads},
                          {"num_kv_heads", std::int64_t{1}},
                          {"head_dim", head_dim},
                          {"scale", 0.25f},
                          {"kv_layout", cache.layout},
                          {"tokens_per_block", tokens_per_block},
                          {"rope_scaling", 1.0f},
                          {"rope_start", std::int64_t{0}},
                          {"logit_softcap", 0.0f},
                          {"qk_norm_epsilon", 0.0f},
                          {"window", group.window.value_or(0)}}});
  graph.nodes.push_back(linear_node("a." + name, "o." + name, "o_rows." + name, hidden_size));
  graph.nodes.push_back({"RmsNorm",
                         {"o_rows." + name, "norm." + name, "x." + name},
                         {next, "sum." + name},
                         {{"epsilon", 1e-5f}}});
}

void TinyEngine::add_norm(const std::string& name) {
  const auto count = static_cast<std::uint64_t>(hidden_size);
  add_weight(name, "plain", {count}, float_bytes(random_values(count, static_cast<unsigned>(weights_.size()))));
}

void TinyEngine::add_linear(const std::string& name, std::int64_t out_features) {
  std::string data = packed(out_features, hidden_size);
  const std::uint64_t size = data.size();
  add_weight(name, bf16_ ? "x16k2.bf16/1" : "x16k1.f32/1", {size}, std::move(data));
}

OnnxNode TinyEngine::linear_node(const std::string& x, const std::string& name, const std::string& y,
                                 std::int64_t out_features) const {
  return {"Linear",
          {x, name},
          {y},
          {{"in_features", hidden_size},
           {"out_features", out_features},
           {"layout", bf16_ ? "x16k2.bf16/1" : "x16k1.f32/1"}}};
}

/// Random numbers in the place of a packed matrix, zeros in its padding. Any order of them is some matrix.
std::string TinyEngine::packed(std::int64_t out_features, std::int64_t in_features) {
  const auto columns = static_cast<std::size_t>((out_features + 15) / 16 * 16);
  const auto inputs = static_cast<std::size_t>(in_features);  // even: no padding
  const float deviation = 1.0f / std::sqrt(static_cast<float>(in_features));
  std::vector<float> values = random_values(columns * inputs, static_cast<unsigned>(weights_.size()), deviation);
  const std::size_t per_line = bf16_ ? 2 : 1;
  std::string bytes;
  for (std::size_t i = 0; i < values.size(); ++i) {
    const std::size_t tile = i / (16 * inputs);
    const std::size_t column = tile * 16 + i % (16 * per_line) / per_line;
    const float value = column < static_cast<std::size_t>(out_features) ? values[i] : 0.0f;
    bytes += bf16_ ? little_endian(round_to_bf16(value).bits) : little_endian(std::bit_cast<std::uint32_t>(value));
  }
  return bytes;
}

void TinyEngine::add_weight(const std::string& name, const std::string& layout, std::vector<std::uint64_t> shape,
                            std::string data) {
  const std::string type = layout == "plain" ? "float32" : "uint8";
  const std::uint64_t end = weights_.empty() ? data_start : weights_.back().record.offset + weights_.back().record.size;
  OnnxTensor tensor{name, layout == "plain" ? onnx_float32 : onnx_uint8, {}};
  for (const std::uint64_t extent : shape) tensor.shape.emplace_back(static_cast<std::int64_t>(extent));
  graph.initializers.push_back(std::move(tensor));
  weights_.push_back({{name, type, layout, std::move(shape), (end + 63) / 64 * 64, data.size()}, std::move(data)});
}

EngineManifest TinyEngine::write(const TemporaryDirectory& directory) const {
  std::string index;
  for (const Weight& weight : weights_) index += weight.record.bytes();
  Header header(index);
  header.tensor_count = static_cast<std::uint32_t>(weights_.size());
  header.file_size = weights_.back().record.offset + weights_.back().record.size;
  std::string file = header.bytes() + index;
  for (const Weight& weight : weights_) {
    file.resize(weight.record.offset, '\0');
    file += weight.data;
  }
  directory.write("rank0/weights.bin", file);
  directory.write("rank0/model.onnx", graph.bytes());

  EngineManifest manifest;
  manifest.directory = directory.path();
  manifest.backend = "onnxruntime";
  manifest.onnxruntime = {.onnxruntime_min = "1.23", .ir_version = 10, .opset = 20};
  manifest.model.vocab_size = vocab_size;
  manifest.build.tokens_per_block = tokens_per_block;
  manifest.ranks.push_back({"rank0/model.onnx", "rank0/weights.bin", kv_groups_, kv_caches_});
  return manifest;
}

}  // namespace precast::test
