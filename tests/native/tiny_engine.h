// An engine small enough to write in a test: two layers of attention, a tied head, fp32 or bf16 weights of random numbers.
// Each layer may have a window.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "runtime/native/src/engine_manifest.h"
#include "tests/native/engine_files.h"
#include "tests/native/onnx_writer.h"

namespace precast::test {

class TinyEngine {
 public:
  static constexpr std::int64_t vocab_size = 40;
  static constexpr std::int64_t hidden_size = 32;
  static constexpr std::int64_t num_heads = 2;
  static constexpr std::int64_t head_dim = 16;
  static constexpr std::int64_t tokens_per_block = 16;
  static constexpr std::int64_t num_layers = 2;

  /// `windows` of the layers, 0: none. Weights do not depend on them.
  explicit TinyEngine(bool bf16, std::array<std::int64_t, num_layers> windows = {});

  /// Writes the files; `graph` and the weights may be changed before.
  EngineManifest write(const TemporaryDirectory& directory) const;

  OnnxGraph graph;

 private:
  struct Weight {
    Record record;
    std::string data;
  };

  void add_inputs();
  void add_layer(std::int64_t layer);
  void add_weight(const std::string& name, const std::string& layout, std::vector<std::uint64_t> shape, std::string data);
  void add_norm(const std::string& name);
  void add_linear(const std::string& name, std::int64_t out_features);
  OnnxNode linear_node(const std::string& x, const std::string& name, const std::string& y,
                       std::int64_t out_features) const;
  std::string packed(std::int64_t out_features, std::int64_t in_features);

  bool bf16_;
  std::vector<KvGroupSpec> kv_groups_;
  std::vector<KvCacheSpec> kv_caches_;
  std::vector<Weight> weights_;
};

}  // namespace precast::test
