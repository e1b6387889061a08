// engine.json, the manifest of an engine directory, read before anything else. docs/engine_format.md is the authority.
#pragma once

#include <cstddef>
#include <array>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/native/src/engine_kv.h"

namespace precast {

struct ModelInfo {
  std::string architecture;      ///< Hugging Face's name, e.g. "LlamaForCausalLM"
  std::int64_t vocab_size = 0;   ///< columns of the logits
  std::int64_t hidden_size = 0;
  std::int64_t num_layers = 0;
  std::int64_t max_seq_len = 0;  ///< most tokens of a sequence, prompt and generated together
  std::optional<std::int64_t> bos_token_id;
  std::vector<std::int64_t> eos_token_ids;  ///< any of them ends a sequence; may be empty
  std::optional<std::int64_t> pad_token_id;
};

struct BuildInfo {
  std::string dtype;           ///< of the weights: "float32", "bfloat16", ...
  std::string kv_cache_dtype;
  std::int64_t tokens_per_block = 0;
  std::optional<std::int64_t> max_seq_len;  ///< the option as it was given; the limit is ModelInfo's
  std::vector<std::string> notes;  ///< sentences for people
};

struct Mapping {
  std::int64_t world_size = 1;  ///< tensor_parallel_size x pipeline_parallel_size, and the number of ranks
  std::int64_t tensor_parallel_size = 1;
  std::int64_t pipeline_parallel_size = 1;
};

/// Paths are relative to the engine directory, and listed in EngineManifest::files.
struct RankFiles {
  std::string graph;
  std::string weights;  ///< "" where the graph file holds them
  std::vector<KvGroupSpec> kv_groups;  ///< without a window first, then ascending; empty for a model without attention
  std::vector<KvCacheSpec> kv_caches;  ///< in the order of the graph's inputs
};

struct FileEntry {
  std::string path;  ///< relative, '/' between components
  std::uint64_t size_bytes = 0;
  std::string sha256;  ///< 64 lower-case hexadecimal digits
};

/// What the graph needs of ONNX Runtime. Present where backend is "onnxruntime".
struct OnnxRuntimeRequirements {
  std::string onnxruntime_min;  ///< oldest release that runs the graph, e.g. "1.23"
  std::int64_t ir_version = 0;
  std::int64_t opset = 0;
};

/// What this runtime has to know of an engine for devices; the rest is for the processes that run it. Present where backend is
/// one of device_backends.
struct DeviceRequirements {
  std::int64_t max_batch_size = 0;  ///< sequences of a step
  std::int64_t max_num_tokens = 0;  ///< tokens of a step
};

struct EngineManifest {
  std::filesystem::path directory;
  std::string precast_version;  ///< of the builder
  std::vector<std::string> required_names;  ///< "requires": ops and layouts, e.g. "ai.precast.Linear/1"
  std::string backend;
  std::optional<OnnxRuntimeRequirements> onnxruntime;
  std::optional<DeviceRequirements> device;
  bool batch_invariant = false;
  bool reproducible = false;
  ModelInfo model;
  BuildInfo build;
  Mapping mapping;
  std::vector<RankFiles> ranks;
  std::vector<FileEntry> files;  ///< ascending in path
};

/// Backends whose ranks run on devices, each in a process of its own.
inline constexpr std::array<std::string_view, 2> device_backends = {"onnxruntime-cuda", "tensorrt"};

/// What this runtime can run, as far as a manifest can tell.
struct RuntimeSupport {
  std::function<bool(std::string_view)> supports;  ///< whether a name of "requires" is known
  std::vector<std::string> backends;
  std::int64_t max_world_size = 1;
};

inline constexpr std::int64_t engine_format = 1;
inline constexpr std::size_t max_manifest_bytes = std::size_t{16} << 20;

/// Reads and checks engine.json, then that every listed file exists with its size. Never hashes.
/// Throws Error: not_found (no engine there), io, corrupt_engine, unsupported_engine.
EngineManifest read_manifest(const std::filesystem::path& directory, const RuntimeSupport& support);

/// The first part of read_manifest, without touching the file system. `source` names the document in messages.
EngineManifest parse_manifest(std::string_view text, const std::string& source, const RuntimeSupport& support);

/// The second part: every listed file is a regular file of the listed size.
void check_files(const EngineManifest& manifest);

}  // namespace precast
