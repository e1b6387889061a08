// The guard of the KV pools, which are written in place: PagedAttention refuses to run where ONNX Runtime gives it other
// memory than the pool. In a session that never happens, so here a copy is passed on purpose.
#include "runtime/native/src/ort_ops/ort_op.h"

#include <array>
#include <cstdio>
#include <cstdlib>

#include "runtime/native/src/ort_library.h"
#include "runtime/native/src/ort_tensor.h"
#include "tests/native/check.h"
#include "tests/native/engine_files.h"
#include "tests/native/onnx_writer.h"

namespace precast::test {
namespace {

constexpr std::int64_t block_bytes = 2 * 16 * 2 * 4;  // one KV head of dimension 2, 16 tokens, fp32

/// One PagedAttention node with one head, for one token.
std::string attention_model() {
  OnnxGraph graph;
  graph.inputs = {{"qkv", onnx_float32, {"T", 6}},           {"query_starts", onnx_int32, {"S_plus_1"}},
                  {"context_lengths", onnx_int32, {"S"}},    {"block_tables.0", onnx_int32, {"S", "B"}},
                  {"kv.0", onnx_uint8, {"num_blocks", block_bytes}}};
  graph.outputs = {{"output", onnx_float32, {"T", 2}}};
  graph.nodes.push_back({"PagedAttention",
                         {"qkv", "query_starts", "context_lengths", "block_tables.0", "kv.0"},
                         {"output"},
                         {{"num_heads", std::int64_t{1}},
                          {"num_kv_heads", std::int64_t{1}},
                          {"head_dim", std::int64_t{2}},
                          {"scale", 1.0f},
                          {"kv_layout", "kv16.f32/1"},
                          {"tokens_per_block", std::int64_t{16}},
                          {"rope_scaling", 1.0f},
                          {"rope_start", std::int64_t{0}},
                          {"logit_softcap", 0.0f},
                          {"qk_norm_epsilon", 0.0f},
                          {"window", std::int64_t{0}}}});
  return graph.bytes();
}

/// Runs the model on token 0 of a sequence whose block lies at `kv`; returns its output.
std::array<float, 2> attend(const OrtLibrary& library, KernelState& state, std::byte* kv) {
  const ort::Api& api = library.api();
  const OrtOps ops(api, state);
  const auto options = ort::make<ort::SessionOptions>(api, api.ReleaseSessionOptions, "make options",
                                                      [&](auto** out) { return api.CreateSessionOptions(out); });
  ops.add_to(*options);
  const std::string model = attention_model();
  const auto session = ort::make<ort::Session>(api, api.ReleaseSession, "load", [&](auto** out) {
    return api.CreateSessionFromArray(&library.env(), model.data(), model.size(), options.get(), out);
  });
  const auto binding = ort::make<ort::IoBinding>(
      api, api.ReleaseIoBinding, "bind", [&](auto** out) { return api.CreateIoBinding(session.get(), out); });

  const TensorMaker tensors(api);
  const auto bind = [&](const char* name, ort::ElementType type, const void* data, std::size_t size_bytes,
                        std::vector<std::int64_t> shape) {
    const auto value = tensors.make(type, data, size_bytes, shape);
    ort::check(api, api.BindInput(binding.get(), name, value.get()), name);
  };
  const std::array<float, 6> qkv = {1, 2, 3, 4, 5, 6};
  const std::array<std::int32_t, 2> query_starts = {0, 1};
  const std::int32_t context_length = 1;
  const std::int32_t block = 0;
  bind("qkv", ort::ElementType::float32, qkv.data(), sizeof qkv, {1, 6});
  bind("query_starts", ort::ElementType::int32, query_starts.data(), sizeof query_starts, {2});
  bind("context_lengths", ort::ElementType::int32, &context_length, sizeof context_length, {1});
  bind("block_tables.0", ort::ElementType::int32, &block, sizeof block, {1, 1});
  bind("kv.0", ort::ElementType::uint8, kv, block_bytes, {1, block_bytes});
  std::array<float, 2> output{};
  const auto value =
      tensors.make(ort::ElementType::float32, output.data(), sizeof output, std::array<std::int64_t, 2>{1, 2});
  ort::check(api, api.BindOutput(binding.get(), "output", value.get()), "bind the output");
  ort::check(api, api.RunWithBinding(session.get(), nullptr, binding.get()), "run");
  return output;
}

}  // namespace

TEST("attention runs on its own pool and refuses a copy of it") {
  const char* const path = std::getenv("PRECAST_ONNXRUNTIME");
  if (path == nullptr || *path == '\0') {
    std::printf("SKIPPED attention on its own pool: PRECAST_ONNXRUNTIME names no libonnxruntime.so\n");
    return;
  }
  const auto library = OrtLibrary::open("");
  const std::vector<KvCacheSpec> specs = {{"kv.0", "kv16.f32/1", block_bytes, 0}};
  const PoolMemory pools(specs, 1);
  const PoolMemory copies(specs, 1);
  KernelState state;
  state.pools = &pools;
  const std::array<float, 2> value = {5, 6};  // of the only token
  CHECK(attend(*library, state, pools.pools()[0].data) == value);
  const std::string text = refusal([&] { attend(*library, state, copies.pools()[0].data); });
  CHECK(text.find("ONNX Runtime passed a copy of the KV cache \"kv.0\"") != std::string::npos);
}

}  // namespace precast::test
