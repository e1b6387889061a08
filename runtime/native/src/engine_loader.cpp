#include "runtime/native/src/engine_loader.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <string_view>
#include <utility>
#include <vector>

#include "plugins/cpu/registry.h"
#include "runtime/native/src/concat.h"
#include "runtime/native/src/engine_manifest.h"
#include "runtime/native/src/host_memory.h"
#include "runtime/native/src/json_writer.h"
#include "runtime/native/src/kv_plan.h"
#include "runtime/native/src/ort_session.h"
#include "runtime/native/src/ranks/device/device_session.h"
#include "runtime/native/src/ranks/local/local_leader.h"
#include "runtime/native/src/ranks/messages/message_leader.h"
#include "runtime/native/src/ranks/messages/message_worker.h"
#include "runtime/native/src/ranks/messages/mpi_job.h"
#include "runtime/native/src/ranks/rank_options.h"
#include "runtime/native/src/ranks/ranked_session.h"
#include "runtime/native/src/version.h"

namespace precast {
namespace {

constexpr std::uint32_t default_rank_timeout_s = 60;

/// Of one block on all ranks: this host holds the memory of all of them.
std::uint64_t page_bytes(const EngineManifest& manifest) {
  std::uint64_t bytes = 0;
  for (const RankFiles& rank : manifest.ranks) bytes += kv_page_bytes(rank.kv_caches);
  return bytes;
}

/// What this host has for the blocks of all ranks together. Of ranks on several hosts, which are taken to be alike, it holds
/// as many as were started here.
std::uint64_t available_bytes(const EngineManifest& manifest) {
  const std::uint64_t available = available_memory_bytes();
  if (mpi_library().empty()) return available;
  std::uint64_t largest = 0;
  for (const RankFiles& rank : manifest.ranks) largest = std::max(largest, kv_page_bytes(rank.kv_caches));
  const std::uint64_t here = largest * MpiJob::open(mpi_library()).messages().num_local_ranks();
  if (here == 0) return available;
  return static_cast<std::uint64_t>(static_cast<double>(available) * static_cast<double>(page_bytes(manifest)) /
                                    static_cast<double>(here));
}

KvPlan plan(const EngineManifest& manifest, std::span<const std::int64_t> windows, const EngineOptions& options) {
  // Each stage may be at a step of its own, and a sequence's windowed layers give no block back before the last of them.
  const auto steps_in_flight = static_cast<std::uint64_t>(manifest.mapping.pipeline_parallel_size);
  return plan_kv_pool({.bytes_per_block = page_bytes(manifest),
                       .tokens_per_block = static_cast<std::uint64_t>(manifest.build.tokens_per_block),
                       .windows = windows,
                       .max_step_tokens = options.max_num_tokens * steps_in_flight,
                       .engine_max_seq_len = static_cast<std::uint64_t>(manifest.model.max_seq_len),
                       .wanted_max_seq_len = options.max_seq_len,
                       .max_batch_size = options.max_batch_size,
                       .kv_cache_bytes = options.kv_cache_bytes,
                       .available_bytes = available_bytes(manifest)});
}

void check(const EngineOptions& options) {
  if (options.max_num_tokens < options.max_batch_size) {
    throw Error(ErrorCode::invalid_argument,
                concat("max_num_tokens ", options.max_num_tokens, " is less than max_batch_size ", options.max_batch_size,
                       ": a step must have room for one token of every running sequence"));
  }
}

/// Whether the environment asks for an audit after every step, as this project's tests do of all engines. Of several ranks it
/// is rank 0 that schedules: the others have nothing to audit.
bool environment_wants_audit() {
  const char* const variable = std::getenv("PRECAST_AUDIT");
  const std::string_view value = variable == nullptr ? "" : variable;
  if (value.empty() || value == "0") return false;
  if (value == "1") return true;
  throw Error(ErrorCode::invalid_argument, concat("PRECAST_AUDIT is ", quote(value),
                                                  "; set it to 1 for an audit after every step, to 0 for none"));
}

EngineLimits limits_of(const EngineManifest& manifest, const KvPlan& kv_plan) {
  EngineLimits limits;
  limits.vocab_size = static_cast<std::int32_t>(manifest.model.vocab_size);
  limits.max_seq_len = kv_plan.max_seq_len;
  for (const std::int64_t id : manifest.model.eos_token_ids) limits.eos_token_ids.push_back(static_cast<std::int32_t>(id));
  return limits;
}

SchedulerConfig scheduler_config(const EngineManifest& manifest, const EngineOptions& options, const KvPlan& kv_plan,
                                 const Session& session) {
  SchedulerConfig config;
  config.policy = options.capacity_policy;
  config.max_batch_size = options.max_batch_size;
  config.max_num_tokens = options.max_num_tokens;
  config.max_in_flight = session.max_in_flight();
  config.session_chooses_tokens = session.chooses_tokens();
  config.max_candidates = session.max_candidates();
  config.kv.tokens_per_block = static_cast<std::size_t>(manifest.build.tokens_per_block);
  config.kv.num_blocks = kv_plan.num_blocks;
  config.kv.windows = kv_group_windows(manifest.ranks.front().kv_groups);
  config.kv.reuse = options.block_reuse;
  config.kv.events_size = options.kv_events_size;
  config.kv.secret = BlockHasher::random_secret();
  return config;
}

/// `device` is what computes, where that is no session of this library.
std::string describe(const EngineManifest& manifest, const EngineOptions& options, const KvPlan& kv_plan,
                     const OrtSession* session, const std::string& device = "cpu") {
  JsonWriter json;
  json.add("backend", manifest.backend)
      .add("device", device)
      .add("precast_version", version())
      .add("path", manifest.directory.string())
      .add("architecture", manifest.model.architecture)
      .add("vocab_size", manifest.model.vocab_size)
      .add("max_seq_len", kv_plan.max_seq_len)
      .add("bos_token_id", manifest.model.bos_token_id)
      .add("eos_token_ids", manifest.model.eos_token_ids)
      .add("dtype", manifest.build.dtype)
      .add("kv_cache_dtype", manifest.build.kv_cache_dtype)
      .add("tokens_per_block", manifest.build.tokens_per_block)
      .add("tensor_parallel_size", manifest.mapping.tensor_parallel_size)
      .add("pipeline_parallel_size", manifest.mapping.pipeline_parallel_size)
      .add("num_blocks", kv_plan.num_blocks)
      .add("kv_cache_bytes", static_cast<std::uint64_t>(kv_plan.num_blocks) * page_bytes(manifest))
      .add("max_batch_size", options.max_batch_size)
      .add("max_num_tokens", options.max_num_tokens);
  if (session == nullptr) return json.finish();
  return json.add("num_threads", session->num_threads())
      .add("kernel_level", name(session->kernel_level()))
      .add("onnxruntime_version", session->onnxruntime_version())
      .add("weights_bytes", session->weights_bytes())
      .add("weights_huge_page_bytes", session->weights_huge_page_bytes())
      .finish();
}

/// A session, and the part of it that is in this process.
struct LoadedSession {
  std::unique_ptr<Session> session;
  const OrtSession* rank0 = nullptr;
};

std::size_t blocks_of(std::size_t num_tokens, const EngineManifest& manifest) {
  const auto tokens_per_block = static_cast<std::size_t>(manifest.build.tokens_per_block);
  return (num_tokens + tokens_per_block - 1) / tokens_per_block;
}

/// In processes of their own. Sets the threads of rank 0.
std::unique_ptr<LeaderLink> start_local_ranks(const EngineManifest& manifest, const RankOptions& options,
                                              std::uint32_t& num_threads) {
  const std::uint32_t all_threads = options.rank.num_threads != 0 ? options.rank.num_threads : num_processors();
  num_threads = std::max(1U, all_threads / static_cast<std::uint32_t>(manifest.ranks.size()));
  return std::make_unique<LocalLeader>(manifest, options, num_threads);
}

/// In the processes that mpiexec has started. Sets the threads of rank 0.
std::unique_ptr<LeaderLink> start_mpi_ranks(const EngineManifest& manifest, const RankOptions& options,
                                            std::uint32_t& num_threads) {
  MpiJob& job = MpiJob::open(mpi_library());
  const std::uint32_t session = job.begin_session(manifest.ranks.size());
  try {
    const std::size_t num_local = job.messages().num_local_ranks();
    num_threads = threads_of_rank(options.rank.num_threads, num_local);
    auto link = std::make_unique<MessageLeader>(job.messages(), manifest, options, session, spins_of(num_local, num_threads));
    link->on_end = [&job](const std::string& failure) { job.end_session(failure); };
    return link;
  } catch (const std::exception& error) {
    job.end_session(error.what());
    throw;
  }
}

std::chrono::seconds rank_timeout(const EngineOptions& options) {
  return std::chrono::seconds(options.rank_timeout_s != 0 ? options.rank_timeout_s : default_rank_timeout_s);
}

/// `max_logit_rows` of a step.
LoadedSession load_session(const EngineManifest& manifest, const EngineOptions& options, const KvPlan& kv_plan,
                           std::size_t max_logit_rows) {
  const OrtSessionOptions rank{.onnxruntime_path = options.onnxruntime_path,
                               .num_threads = options.num_threads,
                               .kernel_level = options.kernel_level,
                               .num_blocks = kv_plan.num_blocks};
  if (manifest.ranks.size() == 1 && mpi_library().empty()) {
    std::unique_ptr<OrtSession> session = OrtSession::load(manifest, rank);
    const OrtSession* const rank0 = session.get();
    return {std::move(session), rank0};
  }
  const std::size_t num_groups = manifest.ranks.front().kv_groups.size();
  const std::size_t blocks = blocks_of(static_cast<std::size_t>(kv_plan.max_seq_len), manifest);
  const RankOptions ranks{
      .rank = rank,
      .worker_path = options.worker_path,
      .rank_timeout = rank_timeout(options),
      .limits = {.max_tokens = options.max_num_tokens,
                 .max_sequences = options.max_batch_size,
                 .max_table_entries = num_groups * options.max_batch_size * (blocks + 1),
                 .max_logit_rows = max_logit_rows,
                 .vocab_size = static_cast<std::size_t>(manifest.model.vocab_size)},
      .log = options.log};
  OrtSessionOptions rank0 = rank;
  std::unique_ptr<LeaderLink> link = mpi_library().empty() ? start_local_ranks(manifest, ranks, rank0.num_threads)
                                                           : start_mpi_ranks(manifest, ranks, rank0.num_threads);
  std::unique_ptr<RankedSession> session = RankedSession::load(manifest, rank0, std::move(link));
  const OrtSession* const loaded = &session->rank0();
  return {std::move(session), loaded};
}

void log_plan(const EngineManifest& manifest, const EngineOptions& options, const KvPlan& kv_plan) {
  options.log.info("loaded ", manifest.directory.string(), ": ", manifest.model.architecture, ", weights ",
                   manifest.build.dtype, ", KV cache ", manifest.build.kv_cache_dtype, ", ", kv_plan.num_blocks,
                   " blocks of ", manifest.build.tokens_per_block, " tokens");
  const std::int64_t wanted = options.max_seq_len != 0 ? options.max_seq_len : manifest.model.max_seq_len;
  if (kv_plan.max_seq_len < wanted) {
    options.log.warning("max_seq_len is ", kv_plan.max_seq_len, " and not ", wanted,
                        kv_plan.max_seq_len < manifest.model.max_seq_len
                            ? ": the KV cache holds no more; give a larger kv_cache_bytes"
                            : ": the engine was built for no more");
  }
}

LoadedEngine start(const EngineManifest& manifest, const EngineOptions& options, const KvPlan& kv_plan,
                   std::unique_ptr<Session> session, KernelLevel sampler_level, std::function<std::string()> info) {
  const SchedulerConfig config = scheduler_config(manifest, options, kv_plan, *session);
  EngineSettings settings{.audit = options.audit,
                          .max_queue_size = options.max_queue_size,
                          .iteration_stats_size = options.iteration_stats_size,
                          .kernel_level = sampler_level,
                          .logits_processor = options.logits_processor,
                          .log = options.log,
                          // A binding may have nowhere to put what its callback raises in the thread that loads, such as
                          // Python's KeyboardInterrupt.
                          .on_start = [=] { log_plan(manifest, options, kv_plan); }};
  auto engine = std::make_unique<Engine>(std::move(session), config, limits_of(manifest, kv_plan), std::move(settings));
  return {std::move(engine), std::move(info)};
}

/// A plan's kernels were chosen for steps up to a size, and take no larger ones.
EngineOptions within_plan(const EngineManifest& manifest, const EngineOptions& wanted) {
  EngineOptions options = wanted;
  if (!manifest.device) return options;
  const auto limit = [&](std::uint32_t& value, std::int64_t most, const char* name) {
    if (value <= most) return;
    options.log.warning(name, " is ", most, " and not ", value, ": the engine was built for no more");
    value = static_cast<std::uint32_t>(most);
  };
  limit(options.max_batch_size, manifest.device->max_batch_size, "max_batch_size");
  limit(options.max_num_tokens, manifest.device->max_num_tokens, "max_num_tokens");
  return options;
}

SessionConfig session_config(const EngineManifest& manifest, const EngineOptions& options) {
  return {.engine_path = manifest.directory.string(),
          .kv_cache_bytes = options.kv_cache_bytes,
          .max_batch_size = options.max_batch_size,
          .max_num_tokens = options.max_num_tokens,
          .max_seq_len = options.max_seq_len,
          .tokens_per_block = static_cast<std::uint32_t>(manifest.build.tokens_per_block),
          .num_kv_groups = static_cast<std::uint32_t>(manifest.ranks.front().kv_groups.size()),
          .vocab_size = static_cast<std::uint32_t>(manifest.model.vocab_size)};
}

/// Makes the session of an engine that runs on devices.
MadeSession load_device_session(const EngineManifest& manifest, const EngineOptions& options, std::size_t max_logit_rows) {
  if (!mpi_library().empty()) {
    throw Error(ErrorCode::unsupported_engine,
                concat(manifest.directory.string(), ": an engine for the backend ", manifest.backend,
                       " runs on one host, and PRECAST_MPI is set: load it without `precast launch`"));
  }
  return DeviceSession::load(manifest, session_config(manifest, options),
                             {.python_path = options.python_path,
                              .rank_timeout = rank_timeout(options),
                              .max_logit_rows = max_logit_rows,
                              .log = options.log});
}

/// How long a sequence may be in a session whose blocks are counted, not weighed.
KvPlan plan_counted(const EngineManifest& manifest, const EngineOptions& options, std::uint32_t num_blocks,
                    std::size_t max_in_flight) {
  const std::vector<std::int64_t> windows = kv_group_windows(manifest.ranks.front().kv_groups);
  return plan_kv_pool({.bytes_per_block = 1,
                       .tokens_per_block = static_cast<std::uint64_t>(manifest.build.tokens_per_block),
                       .windows = windows,
                       .max_step_tokens = options.max_num_tokens * max_in_flight,
                       .engine_max_seq_len = static_cast<std::uint64_t>(manifest.model.max_seq_len),
                       .wanted_max_seq_len = options.max_seq_len,
                       .max_batch_size = options.max_batch_size,
                       .kv_cache_bytes = num_blocks,
                       .available_bytes = 0});
}

/// An engine whose steps somebody else computes: what its graphs need is that session's business.
LoadedEngine load_external(const EngineManifest& manifest, const EngineOptions& wanted) {
  const EngineOptions options = within_plan(manifest, wanted);
  check(options);
  if (options.num_threads != 0 || !options.kernel_level.empty()) {
    throw Error(ErrorCode::invalid_argument,
                concat(manifest.directory.string(), ": num_threads and kernel_level are of ONNX Runtime on the CPU, and this ",
                       "engine runs with ", manifest.backend, ": leave them out"));
  }
  MadeSession made = options.make_session ? options.make_session(session_config(manifest, options))
                                          : load_device_session(manifest, options, options.max_batch_size);
  const KvPlan kv_plan = plan_counted(manifest, options, made.num_blocks, made.session->max_in_flight());
  auto info = [=, device = made.device] { return describe(manifest, options, kv_plan, nullptr, device); };
  return start(manifest, options, kv_plan, std::move(made.session), best_kernel_level(), std::move(info));
}

}  // namespace

RuntimeSupport runtime_support() {
  const auto is_one_of = [](std::span<const std::string_view> names, std::string_view name) {
    return std::find(names.begin(), names.end(), name) != names.end();
  };
  return {.supports = [=](std::string_view name) {
            return is_one_of(supported_ops(), name) || is_one_of(supported_layouts(), name);
          },
          .backends = {"onnxruntime"},
          .max_world_size = std::int64_t{1} << 15};
}

RuntimeSupport device_support() {
  RuntimeSupport support = runtime_support();
  support.supports = [](std::string_view) { return true; };
  support.backends.insert(support.backends.end(), device_backends.begin(), device_backends.end());
  return support;
}

namespace {

/// The manifest of an engine that is to be loaded, if anybody can run it.
EngineManifest read_loadable(const std::filesystem::path& directory, bool has_session) {
  EngineManifest manifest = read_manifest(directory, device_support());
  // What ONNX Runtime is to run, this library must have the ops of.
  if (manifest.backend == "onnxruntime" && !has_session) manifest = read_manifest(directory, runtime_support());
  return manifest;
}

}  // namespace

LoadedEngine load_engine(const std::filesystem::path& directory, const EngineOptions& wanted) {
  check(wanted);
  EngineOptions options = wanted;
  options.audit = options.audit || environment_wants_audit();
  const EngineManifest manifest = read_loadable(directory, static_cast<bool>(options.make_session));
  if (options.make_session || manifest.backend != "onnxruntime") return load_external(manifest, options);
  const std::vector<std::int64_t> windows = kv_group_windows(manifest.ranks.front().kv_groups);
  const KvPlan kv_plan = plan(manifest, windows, options);
  LoadedSession loaded = load_session(manifest, options, kv_plan, options.max_batch_size);
  // The session belongs to the engine, at the same address.
  auto info = [=, rank0 = loaded.rank0] { return describe(manifest, options, kv_plan, rank0); };
  const KernelLevel level = loaded.rank0->kernel_level();
  return start(manifest, options, kv_plan, std::move(loaded.session), level, std::move(info));
}

LoadedModel load_model(const std::filesystem::path& directory, const EngineOptions& options) {
  check(options);
  const EngineManifest manifest = read_loadable(directory, false);
  EngineOptions one_sequence = options;
  one_sequence.max_batch_size = 1;
  const std::vector<std::int64_t> windows = kv_group_windows(manifest.ranks.front().kv_groups);
  if (manifest.backend != "onnxruntime") {
    // Of each row that is computed the logits are wanted: a plan gives no more of them than it has sequences.
    one_sequence = within_plan(manifest, one_sequence);
    one_sequence.max_num_tokens = std::min(one_sequence.max_num_tokens,
                                           static_cast<std::uint32_t>(manifest.device->max_batch_size));
    EngineOptions rows = one_sequence;
    rows.max_batch_size = one_sequence.max_num_tokens;  // for a session, sequences are what has rows of logits
    MadeSession made = load_device_session(manifest, rows, rows.max_num_tokens);
    const KvPlan kv_plan = plan_counted(manifest, one_sequence, made.num_blocks, 1);
    auto info = [=, device = made.device] { return describe(manifest, one_sequence, kv_plan, nullptr, device); };
    auto model = std::make_unique<Model>(std::move(made.session), limits_of(manifest, kv_plan),
                                         one_sequence.max_num_tokens,
                                         static_cast<std::size_t>(manifest.build.tokens_per_block), windows);
    return {std::move(model), std::move(info)};
  }
  const KvPlan kv_plan = plan(manifest, windows, one_sequence);
  LoadedSession loaded = load_session(manifest, options, kv_plan, options.max_num_tokens);
  auto info = [=, rank0 = loaded.rank0] { return describe(manifest, one_sequence, kv_plan, rank0); };
  auto model = std::make_unique<Model>(std::move(loaded.session), limits_of(manifest, kv_plan), options.max_num_tokens,
                                       static_cast<std::size_t>(manifest.build.tokens_per_block), windows);
  return {std::move(model), std::move(info)};
}

}  // namespace precast
