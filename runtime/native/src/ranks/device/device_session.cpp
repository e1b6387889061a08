#include "runtime/native/src/ranks/device/device_session.h"

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <string_view>
#include <utility>

#include "runtime/native/src/concat.h"
#include "runtime/native/src/error.h"
#include "runtime/native/src/ranks/rank_options.h"

namespace precast {
namespace {

constexpr std::size_t most_in_flight = 2;  // so that a device has the next step before the host has this one's result
constexpr std::size_t most_candidates = 64;

// Without the current directory, in which a folder may be called precast.
constexpr const char* worker_script =
    "import sys; sys.path = [path for path in sys.path if path]; "
    "from precast.runtime.device.worker import main; sys.exit(main(sys.argv[1:]))";

constexpr const char* python_choice =
    "set PRECAST_PYTHON or the option python_path to a Python that has precast[tensorrt-runtime] or precast[cuda-runtime]";

WorkerProgram find_python(const std::string& option) {
  std::string path = option;
  if (const char* const variable = std::getenv("PRECAST_PYTHON"); path.empty() && variable != nullptr) path = variable;
  return {.path = path.empty() ? "python3" : path, .first_arguments = {"-c", worker_script}, .choice = python_choice};
}

std::size_t num_table_entries(const EngineManifest& manifest, const SessionConfig& config) {
  const auto engine = static_cast<std::size_t>(manifest.model.max_seq_len);
  const std::size_t longest = config.max_seq_len == 0 ? engine : std::min<std::size_t>(engine, config.max_seq_len);
  const std::size_t blocks = (longest + config.tokens_per_block - 1) / config.tokens_per_block;
  return std::size_t{config.num_kv_groups} * config.max_batch_size * (blocks + 1);
}

LocalRanks::Settings settings_of(const EngineManifest& manifest, const SessionConfig& config, const DeviceOptions& options) {
  const std::size_t world_size = manifest.ranks.size();
  const auto num_stages = static_cast<std::size_t>(manifest.mapping.pipeline_parallel_size);
  return {// The engine itself has the last seat. Devices meet by means of their own.
          .rank_memory = {.tensor_parallel_size = world_size + 1, .buffer_bytes = 128, .slot_bytes = 128, .num_slots = 1},
          .steps = {.world_size = world_size,
                    .num_slots = std::bit_ceil(std::max(most_in_flight, num_stages)),
                    .carries_logits = true,
                    .max_candidates = most_candidates,
                    .limits = {.max_tokens = config.max_num_tokens,
                               .max_sequences = config.max_batch_size,
                               .max_table_entries = num_table_entries(manifest, config),
                               .max_logit_rows = options.max_logit_rows,
                               .vocab_size = config.vocab_size}},
          .first_rank = 0,
          .seat = world_size,
          .wait = {.rank_timeout = options.rank_timeout, .spins = WaitOptions{}.spins, .waiter = "the engine"},
          .program = find_python(options.python_path),
          .worker = {.engine_dir = manifest.directory.string(),
                     .device = {.kv_cache_bytes = config.kv_cache_bytes,
                                .max_batch_size = config.max_batch_size,
                                .max_num_tokens = config.max_num_tokens,
                                .max_seq_len = config.max_seq_len}},
          .log = options.log};
}

}  // namespace

MadeSession DeviceSession::load(const EngineManifest& manifest, const SessionConfig& config, const DeviceOptions& options) {
  std::unique_ptr<DeviceSession> session(new DeviceSession(manifest, config, options));
  MadeSession made = session->describe();
  made.session = std::move(session);
  return made;
}

DeviceSession::DeviceSession(const EngineManifest& manifest, const SessionConfig& config, const DeviceOptions& options)
    : logits_rank_(manifest.ranks.size() - static_cast<std::size_t>(manifest.mapping.tensor_parallel_size)),
      vocab_size_(config.vocab_size),
      ranks_(settings_of(manifest, config, options)) {
  try {
    ranks_.wait_until_ready();
  } catch (const CommunicatorError&) {
    // A rank that says nothing of its own may be a Python that lacks what it needs.
    throw Error(ErrorCode::rank_failed, concat(ranks_.failure(), "; ranks run with the Python ",
                                               quote(find_python(options.python_path).path), ": to choose another one, ",
                                               python_choice));
  }
}

DeviceSession::~DeviceSession() = default;

MadeSession DeviceSession::describe() {
  const StepMemory& steps = ranks_.steps();
  const WorkerProperties& first = steps.worker(logits_rank_).properties;
  MadeSession made{.session = nullptr, .num_blocks = first.num_blocks, .device = first.device};
  for (std::size_t rank = 0; rank < steps.sizes().world_size; ++rank) {
    const WorkerProperties& properties = steps.worker(rank).properties;
    made.num_blocks = std::min(made.num_blocks, properties.num_blocks);  // of all ranks the same blocks are used
    if (properties.max_in_flight != first.max_in_flight || properties.chooses_tokens != first.chooses_tokens) {
      const auto says = [](const WorkerProperties& of) {
        return concat("max_in_flight ", of.max_in_flight, " and chooses_tokens ", of.chooses_tokens);
      };
      throw Error(ErrorCode::internal, concat("rank ", rank, " has ", says(properties), ", and rank ", logits_rank_, " has ",
                                              says(first), ": all ranks must do alike"));
    }
  }
  max_in_flight_ = std::min<std::size_t>(first.max_in_flight, steps.sizes().num_slots);
  chooses_tokens_ = first.chooses_tokens != 0;
  max_candidates_ = first.max_candidates;
  if (max_candidates_ > most_candidates) {
    throw Error(ErrorCode::internal, concat("rank ", logits_rank_, " gives ", max_candidates_,
                                            " candidates of a row; there is room for ", most_candidates));
  }
  return made;
}

void DeviceSession::enqueue(const StepBatch& batch) {
  if (ranks_.has_failed()) throw_failure();
  try {
    ranks_.publish(num_published_ + 1, batch);
  } catch (const CommunicatorError&) {
    throw_failure();
  }
  ++num_published_;
  const auto count = [](const auto& values) {
    return static_cast<std::size_t>(std::ranges::count_if(values, [](auto value) { return value > 0; }));
  };
  in_flight_.push_back({.num_rows = batch.logit_rows.size(),
                        .num_logits = count(batch.needs_logits) * vocab_size_,
                        .num_candidates = count(batch.num_candidates)});
}

StepResult DeviceSession::collect(std::uint64_t step) {
  static_cast<void>(step);  // the oldest
  const Expected expected = in_flight_.front();
  in_flight_.pop_front();
  const std::uint32_t number = ++num_collected_;
  try {
    ranks_.wait_for(logits_rank_, number);
  } catch (const CommunicatorError&) {
    throw_failure();
  }
  const StepArrays arrays = ranks_.steps().result(number);
  StepResult result;
  result.logits = {arrays.logits, expected.num_logits};
  if (chooses_tokens_) result.token_ids = {arrays.token_ids, expected.num_rows};
  result.candidate_ids = {arrays.candidate_ids, expected.num_candidates * max_candidates_};
  result.candidate_logits = {arrays.candidate_logits, expected.num_candidates * max_candidates_};
  result.log_sums = {arrays.log_sums, expected.num_candidates};
  return result;
}

void DeviceSession::throw_failure() const { throw Error(ErrorCode::rank_failed, ranks_.failure()); }

}  // namespace precast
