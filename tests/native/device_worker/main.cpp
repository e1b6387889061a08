// What runs a rank on a device, without Python and without a device: stands in for `python -c SCRIPT WORKER_ARGUMENTS`, and
// computes device_model.h. The environment says how it misbehaves; "RANK" below is a rank, or "*" for all.
//
//     DEVICE_BLOCKS=40,30        num_blocks of each rank (64)         DEVICE_IN_FLIGHT=2,1    max_in_flight of each rank (2)
//     DEVICE_CHOOSES=0           chooses_tokens (1)                   DEVICE_CANDIDATES=8     max_candidates (0)
//     DEVICE_LATE_MS=3,0         is_done of each rank is false so long  DEVICE_EXCHANGES=100    turns of exchange in create (0)
//     DEVICE_WRITES=text         to stdout and stderr, in create
//     DEVICE_FAILS=RANK:WHERE:CODE     reports an error       WHERE is "create", or a function and its step: "collect.3"
//     DEVICE_EXITS=RANK:WHERE:STATUS   ends the process
//     DEVICE_HANGS=RANK:WHERE:MS       does not return for so long
//     DEVICE_STOPS=RANK:WHERE:0        stops the process, as SIGSTOP does
//     DEVICE_RESULTS_RANK=1            the only rank that gives results (0)
//     DEVICE_NO_TOKEN=5                the row behind this token has no largest logit
//
// `precast_device_worker --engine DIR` loads this engine with itself as its Python, tells what is logged, and "running" after
// a first request; then it waits to be killed.
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <limits>
#include <map>
#include <sstream>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "precast.h"
#include "tests/native/candidates_of.h"
#include "tests/native/device_worker/device_model.h"

namespace {

using namespace precast::test;
using Clock = std::chrono::steady_clock;

constexpr std::size_t most_exchanged_bytes = 4096;  // as precast.h says

std::string setting(const char* name) {
  const char* const value = std::getenv(name);
  return value == nullptr ? "" : value;
}

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::istringstream from(text);
  for (std::string part; std::getline(from, part, separator);) parts.push_back(part);
  return parts;
}

std::uint32_t number(const char* name, std::uint32_t fallback) {
  const std::string value = setting(name);
  return value.empty() ? fallback : static_cast<std::uint32_t>(std::stoul(value));
}

/// Of a list with a number for each rank, or one for all.
std::uint32_t number_of_rank(const char* name, std::uint32_t rank, std::uint32_t fallback) {
  const std::vector<std::string> values = split(setting(name), ',');
  if (values.empty()) return fallback;
  return static_cast<std::uint32_t>(std::stoul(values[std::min<std::size_t>(rank, values.size() - 1)]));
}

precast_error_t* failed(precast_error_code_t code, const std::string& text) { return precast_error_new(code, text.c_str()); }

/// The number behind the colon where `name` is set for this rank and place, -1 where not.
int misdeed(const char* name, std::uint32_t rank, const std::string& where) {
  const std::vector<std::string> parts = split(setting(name), ':');
  if (parts.size() != 3 || (parts[0] != "*" && parts[0] != std::to_string(rank)) || parts[1] != where) return -1;
  return std::stoi(parts[2]);
}

precast_error_t* misbehave(std::uint32_t rank, const std::string& where) {
  if (const int status = misdeed("DEVICE_EXITS", rank, where); status >= 0) ::_exit(status);
  if (misdeed("DEVICE_STOPS", rank, where) >= 0) ::raise(SIGSTOP);
  if (const int ms = misdeed("DEVICE_HANGS", rank, where); ms >= 0) std::this_thread::sleep_for(std::chrono::milliseconds(ms));
  if (const int code = misdeed("DEVICE_FAILS", rank, where); code >= 0) return failed(code, "the device says no in " + where);
  return nullptr;
}

/// Shows the other ranks bytes of many sizes, and looks at theirs.
precast_error_t* exchange(const precast_session_config_t& config, std::uint32_t num_turns) {
  const auto byte = [](std::size_t rank, std::size_t turn, std::size_t i) {
    return static_cast<unsigned char>(rank * 101 + turn * 7 + i);
  };
  for (std::size_t turn = 0; turn < num_turns; ++turn) {
    const std::size_t size = 1 + turn * 167 % most_exchanged_bytes;
    std::vector<unsigned char> mine;
    for (std::size_t i = 0; i < size; ++i) mine.push_back(byte(config.rank, turn, i));
    std::vector<unsigned char> all(size * config.world_size);
    if (precast_error_t* error = config.exchange(config.exchange_data, mine.data(), size, all.data())) return error;
    for (std::size_t k = 0; k < all.size(); ++k) {
      if (all[k] != byte(k / size, turn, k % size)) return failed(PRECAST_ERROR_INTERNAL, "exchange gave other bytes");
    }
  }
  std::vector<unsigned char> large((most_exchanged_bytes + 1) * config.world_size);
  precast_error_t* const refused =
      config.exchange(config.exchange_data, large.data(), most_exchanged_bytes + 1, large.data());
  if (refused == nullptr) return failed(PRECAST_ERROR_INTERNAL, "exchange took more than it may");
  precast_error_delete(refused);
  return nullptr;
}

class DeviceModel {
 public:
  explicit DeviceModel(const precast_session_config_t& config)
      : config_(config),
        max_in_flight_(number_of_rank("DEVICE_IN_FLIGHT", config.rank, 2)),
        max_candidates_(number("DEVICE_CANDIDATES", 0)),
        chooses_tokens_(number("DEVICE_CHOOSES", 1) != 0),
        late_(number_of_rank("DEVICE_LATE_MS", config.rank, 0)),
        no_token_(static_cast<std::int32_t>(number("DEVICE_NO_TOKEN", std::numeric_limits<std::int32_t>::max()))),
        memory_(number_of_rank("DEVICE_BLOCKS", config.rank, 64), std::vector<std::int32_t>(config.tokens_per_block, -1)) {}

  ~DeviceModel() {
    std::fprintf(stderr,
                 "seen: world_size=%u max_batch_size=%u max_num_tokens=%u max_seq_len=%u kv_cache_bytes=%llu "
                 "most_in_flight=%zu sources=%zu whole_rows=%zu candidate_rows=%zu most_rows=%zu most_tokens=%zu\n",
                 config_.world_size, config_.max_batch_size, config_.max_num_tokens, config_.max_seq_len,
                 static_cast<unsigned long long>(config_.kv_cache_bytes), most_in_flight_, num_sources_, num_whole_rows_,
                 num_candidate_rows_, most_rows_, most_tokens_);
  }
  DeviceModel(const DeviceModel&) = delete;
  DeviceModel& operator=(const DeviceModel&) = delete;

  void describe(precast_session_properties_t& properties) const {
    properties.num_blocks = static_cast<std::uint32_t>(memory_.size());
    properties.max_in_flight = max_in_flight_;
    properties.chooses_tokens = chooses_tokens_ ? 1 : 0;
    properties.max_candidates = max_candidates_;
    properties.device = "a model of a device";
  }

  precast_error_t* enqueue(const precast_step_t& step) {
    if (precast_error_t* error = misbehave(config_.rank, "enqueue." + std::to_string(step.id))) return error;
    if (in_flight_.size() == max_in_flight_) return failed(PRECAST_ERROR_INTERNAL, "a step too many is in flight");
    if (step.num_logit_rows > config_.max_batch_size || step.num_tokens > config_.max_num_tokens) {
      return failed(PRECAST_ERROR_INTERNAL, "a step is larger than the limits that create was told");
    }
    if (step.id != last_id_ + 1) {
      return failed(PRECAST_ERROR_INTERNAL, "step " + std::to_string(step.id) + " follows step " + std::to_string(last_id_));
    }
    last_id_ = step.id;
    spoil();
    in_flight_.push_back({&step, Clock::now()});
    most_in_flight_ = std::max(most_in_flight_, in_flight_.size());
    most_rows_ = std::max(most_rows_, step.num_logit_rows);
    most_tokens_ = std::max(most_tokens_, step.num_tokens);
    num_sources_ += step.num_token_sources;
    return nullptr;
  }

  precast_error_t* is_done(std::uint64_t id, std::uint32_t& done) {
    if (precast_error_t* error = misbehave(config_.rank, "is_done." + std::to_string(id))) return error;
    if (in_flight_.front().step->id != id) return failed(PRECAST_ERROR_INTERNAL, "is_done of another step than the oldest");
    done = Clock::now() - in_flight_.front().begin >= late_ ? 1 : 0;
    return nullptr;
  }

  precast_error_t* collect(std::uint64_t id, precast_step_result_t& result) {
    if (precast_error_t* error = misbehave(config_.rank, "collect." + std::to_string(id))) return error;
    const precast_step_t& step = *in_flight_.front().step;
    in_flight_.pop_front();
    if (step.id != id) return failed(PRECAST_ERROR_INTERNAL, "collect of another step than the oldest");
    if (precast_error_t* error = write(step)) return error;
    clear();
    for (std::size_t r = 0; r < step.num_logit_rows; ++r) {
      if (precast_error_t* error = compute_row(step, r)) return error;
    }
    chosen_[id] = tokens_;
    chosen_.erase(chosen_.begin(), chosen_.lower_bound(id > 8 ? id - 8 : 0));
    if (config_.rank != number("DEVICE_RESULTS_RANK", 0)) return nullptr;  // nobody reads the others' results
    result.logits = logits_.data();
    result.token_ids = tokens_.data();
    result.candidate_ids = candidate_ids_.data();
    result.candidate_logits = candidate_logits_.data();
    result.log_sums = log_sums_.data();
    return nullptr;
  }

 private:
  struct InFlight {
    const precast_step_t* step;
    Clock::time_point begin;
  };

  static std::size_t sequence_of(const precast_step_t& step, std::int32_t row) {
    std::size_t s = 0;
    while (step.query_starts[s + 1] <= row) ++s;
    return s;
  }

  static std::int32_t position_of(const precast_step_t& step, std::size_t s, std::int32_t row) {
    return step.context_lengths[s] - step.query_starts[s + 1] + row;
  }

  /// Where a position of a sequence lies, NULL where there is no block.
  std::int32_t* place(const precast_step_t& step, std::size_t s, std::int32_t position) {
    const auto at = static_cast<std::size_t>(position);
    const auto width = static_cast<std::size_t>(step.block_table_widths[0]);
    const std::size_t index = at / config_.tokens_per_block;
    if (index >= width) return nullptr;
    const std::int32_t block = step.block_tables[0][s * width + index];
    if (block < 0 || static_cast<std::size_t>(block) >= memory_.size()) return nullptr;
    return &memory_[static_cast<std::size_t>(block)][at % config_.tokens_per_block];
  }

  /// All tokens of the step, also those that the step before has chosen.
  precast_error_t* write(const precast_step_t& step) {
    std::vector<std::int32_t> tokens(step.token_ids, step.token_ids + step.num_tokens);
    for (std::size_t i = 0; i < step.num_token_sources; ++i) {
      const precast_token_source_t& source = step.token_sources[i];
      const std::int32_t chosen = chosen_.at(source.source_step).at(static_cast<std::size_t>(source.source_row));
      tokens.at(static_cast<std::size_t>(source.row)) = std::max(chosen, 0);  // what follows -1 is of no interest
    }
    for (std::int32_t row = 0; row < static_cast<std::int32_t>(step.num_tokens); ++row) {
      const std::size_t s = sequence_of(step, row);
      std::int32_t* const to = place(step, s, position_of(step, s, row));
      if (to == nullptr) return failed(PRECAST_ERROR_INTERNAL, "a token has no block to be written to");
      *to = tokens[static_cast<std::size_t>(row)];
    }
    return nullptr;
  }

  precast_error_t* compute_row(const precast_step_t& step, std::size_t r) {
    const std::int32_t row = step.logit_rows[r];
    const std::size_t s = sequence_of(step, row);
    std::vector<std::int32_t> tokens;
    for (std::int32_t position = 0; position <= position_of(step, s, row); ++position) {
      const std::int32_t* const from = place(step, s, position);
      if (from == nullptr || *from < 0) return failed(PRECAST_ERROR_INTERNAL, "a token that was never written is read");
      tokens.push_back(*from);
    }
    const std::vector<float> logits = device_logits(tokens);
    tokens_.push_back(tokens.back() == no_token_ ? -1 : device_token(logits));
    if (step.needs_logits[r] != 0) {
      logits_.insert(logits_.end(), logits.begin(), logits.end());
      ++num_whole_rows_;
    } else if (step.num_candidates[r] > 0) {
      const FoundCandidates found = candidates_of(logits, static_cast<std::size_t>(step.num_candidates[r]));
      log_sums_.push_back(found.log_sum);
      candidate_ids_.insert(candidate_ids_.end(), found.ids.begin(), found.ids.end());
      candidate_ids_.resize(log_sums_.size() * max_candidates_, -7);
      candidate_logits_.insert(candidate_logits_.end(), found.logits.begin(), found.logits.end());
      candidate_logits_.resize(log_sums_.size() * max_candidates_, std::nanf(""));
      ++num_candidate_rows_;
    }
    return nullptr;
  }

  void clear() {
    logits_.clear();
    tokens_.clear();
    candidate_ids_.clear();
    candidate_logits_.clear();
    log_sums_.clear();
  }

  /// A result is good until the next call: who reads it later reads this.
  void spoil() {
    std::ranges::fill(logits_, std::nanf(""));
    std::ranges::fill(tokens_, -9);
    std::ranges::fill(candidate_ids_, -9);
    std::ranges::fill(log_sums_, std::nanf(""));
  }

  const precast_session_config_t config_;
  const std::uint32_t max_in_flight_;
  const std::uint32_t max_candidates_;
  const bool chooses_tokens_;
  const std::chrono::milliseconds late_;
  const std::int32_t no_token_;
  std::vector<std::vector<std::int32_t>> memory_;  // [block][position within it]: the token there
  std::deque<InFlight> in_flight_;
  std::uint64_t last_id_ = 0;
  std::map<std::uint64_t, std::vector<std::int32_t>> chosen_;  // of each step
  std::vector<float> logits_;
  std::vector<std::int32_t> tokens_;
  std::vector<std::int32_t> candidate_ids_;
  std::vector<float> candidate_logits_;
  std::vector<float> log_sums_;
  std::size_t most_in_flight_ = 0;
  std::size_t num_sources_ = 0;
  std::size_t num_whole_rows_ = 0;
  std::size_t num_candidate_rows_ = 0;
  std::size_t most_rows_ = 0;
  std::size_t most_tokens_ = 0;
};

precast_error_t* create(void*, const precast_session_config_t* config, precast_session_properties_t* properties,
                        void** session) {
  if (const std::string text = setting("DEVICE_WRITES"); !text.empty()) {
    std::printf("out: %s\n", text.c_str());
    std::fflush(stdout);
    std::fprintf(stderr, "err: %s\n", text.c_str());
  }
  if ((config->exchange != nullptr) != (config->world_size > 1)) {
    return failed(PRECAST_ERROR_INTERNAL, "exchange is there for one rank, or not there for several");
  }
  if (precast_error_t* error = misbehave(config->rank, "create")) return error;
  if (const std::uint32_t turns = number("DEVICE_EXCHANGES", 0); turns > 0) {
    if (precast_error_t* error = exchange(*config, turns)) return error;
  }
  auto* const made = new DeviceModel(*config);
  made->describe(*properties);
  *session = made;
  return nullptr;
}

DeviceModel& model(void* session) { return *static_cast<DeviceModel*>(session); }

int say(precast_error_t* error) {
  std::fprintf(stderr, "%s\n", precast_error_message(error));
  precast_error_delete(error);
  return 1;
}

int run_rank(int argc, char** argv) {
  if (argc < 3 || std::string_view(argv[1]) != "-c") {
    std::fprintf(stderr, "expected -c SCRIPT ARGUMENTS\n");
    return 2;
  }
  precast_session_table_t table{};
  table.struct_size = sizeof table;
  table.version = 1;
  table.create = create;
  table.enqueue = [](void* session, const precast_step_t* step) { return model(session).enqueue(*step); };
  table.collect = [](void* session, std::uint64_t id, precast_step_result_t* result) {
    return model(session).collect(id, *result);
  };
  table.is_done = [](void* session, std::uint64_t id, std::uint32_t* done) { return model(session).is_done(id, *done); };
  table.destroy = [](void* session) { delete &model(session); };
  std::int32_t status = 0;
  precast_error_t* const error = precast_worker_run(argv + 3, static_cast<std::size_t>(argc - 3), &table, &status);
  return error != nullptr ? say(error) : status;
}

int run_engine(const char* directory) {
  precast_engine_options_t options;
  precast_engine_options_init(&options, sizeof options);
  options.python_path = "/proc/self/exe";
  options.log = [](void*, precast_log_level_t, const char* message) {
    std::printf("%s\n", message);
    std::fflush(stdout);
  };
  precast_engine_t* engine = nullptr;
  if (precast_error_t* error = precast_engine_new(directory, &options, &engine)) return say(error);
  const std::int32_t prompt = 3;
  precast_request_t request;
  precast_request_init(&request, sizeof request);
  request.prompt_token_ids = &prompt;
  request.num_prompt_tokens = 1;
  const precast_request_t* const pointer = &request;
  if (precast_error_t* error = precast_engine_submit(engine, &pointer, 1, nullptr)) return say(error);
  for (bool is_over = false; !is_over;) {
    precast_event_t event;
    std::size_t count = 0;
    if (precast_error_t* error = precast_engine_wait(engine, &event, sizeof event, 1, -1, &count)) return say(error);
    is_over = event.is_last != 0;
    precast_event_clear(&event, sizeof event);
  }
  std::printf("running\n");
  std::fflush(stdout);
  while (true) ::pause();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 3 && std::string_view(argv[1]) == "--engine") return run_engine(argv[2]);
  return run_rank(argc, argv);
}
