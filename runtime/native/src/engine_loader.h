#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>

#include "runtime/native/src/engine.h"
#include "runtime/native/src/engine_manifest.h"
#include "runtime/native/src/log.h"
#include "runtime/native/src/model.h"
#include "runtime/native/src/session_factory.h"

namespace precast {

/// How to load an engine; precast_engine_options_t, where each field is explained. 0 and "" are the defaults.
struct EngineOptions {
  std::string onnxruntime_path;
  std::uint32_t num_threads = 0;
  std::uint32_t max_batch_size = 64;
  std::uint32_t max_num_tokens = 2048;
  std::uint32_t max_seq_len = 0;
  std::uint64_t kv_cache_bytes = 0;
  std::string kernel_level;
  CapacityPolicy capacity_policy = CapacityPolicy::guaranteed_no_evict;
  bool block_reuse = true;
  std::uint64_t max_queue_size = 0;
  std::uint32_t iteration_stats_size = 0;
  std::uint32_t kv_events_size = 0;
  std::shared_ptr<LogitsProcessor> logits_processor;
  SessionFactory make_session;  ///< empty: what the engine was built for computes
  std::string worker_path;
  std::string python_path;
  std::uint32_t rank_timeout_s = 0;
  bool audit = false;  ///< EngineSettings::audit; the environment variable PRECAST_AUDIT asks for it too
  Log log;
};

struct LoadedEngine {
  std::unique_ptr<Engine> engine;
  std::function<std::string()> info_json;  ///< what precast_engine_info gives; from any thread while the engine lives
};

/// What this library can run, with ONNX Runtime.
RuntimeSupport runtime_support();

/// What others can run for this library: it reads such an engine's manifest, and leaves it to them what its files need.
RuntimeSupport device_support();

/// Reads the manifest, sizes the KV pool, maps the weights, opens ONNX Runtime, or starts what runs the engine's ranks on
/// devices, and starts the engine.
/// Throws Error.
LoadedEngine load_engine(const std::filesystem::path& directory, const EngineOptions& wanted);

struct LoadedModel {
  std::unique_ptr<Model> model;
  std::function<std::string()> info_json;
};

/// The same for the forward pass alone, with a pool for one sequence. Throws Error.
LoadedModel load_model(const std::filesystem::path& directory, const EngineOptions& options);

}  // namespace precast
