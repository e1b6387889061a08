#include "runtime/native/src/c_api/external_session.h"

#include <algorithm>
#include <deque>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "runtime/native/src/c_api/candidate_check.h"
#include "runtime/native/src/c_api/error.h"
#include "runtime/native/src/c_api/structs.h"
#include "runtime/native/src/c_api/values.h"
#include "runtime/native/src/concat.h"
#include "runtime/native/src/ranks/local/step_memory.h"
#include "runtime/native/src/result_rows.h"

namespace precast {
namespace {

constexpr std::uint32_t table_version = 1;
constexpr std::uint32_t most_in_flight = 64;
constexpr std::size_t most_candidates = 1024;

/// Throws what a function of the caller reports.
void check(precast_error_t* error) {
  if (error != nullptr) throw take_error(error);
}

/// A StepBatch as the caller sees it: pointers into the batch, and what a vector of vectors cannot show.
struct ExternalStep {
  explicit ExternalStep(const StepBatch& from) : batch(from), num_rows(batch.logit_rows.size()) {
    for (const BlockTable& table : batch.block_tables) {
      block_tables.push_back(table.blocks.data());
      widths.push_back(table.width);
    }
    for (const TokenSource& source : batch.token_sources) {
      sources.push_back({source.row, source.source_row, source.source_step});
    }
    const auto is_set = [](auto value) { return value != 0; };
    num_logits = static_cast<std::size_t>(std::ranges::count_if(batch.needs_logits, is_set));
    num_with_candidates = static_cast<std::size_t>(std::ranges::count_if(batch.num_candidates, is_set));
    view.struct_size = sizeof view;
    view.id = batch.id;
    view.token_ids = batch.token_ids.data();
    view.num_tokens = batch.num_tokens();
    view.query_starts = batch.query_starts.data();
    view.context_lengths = batch.context_lengths.data();
    view.num_sequences = batch.num_sequences();
    view.block_tables = block_tables.data();
    view.block_table_widths = widths.data();
    view.num_kv_groups = block_tables.size();
    view.logit_rows = batch.logit_rows.data();
    view.needs_logits = batch.needs_logits.data();
    view.num_logit_rows = num_rows;
    view.token_sources = sources.data();
    view.num_token_sources = sources.size();
    view.num_candidates = batch.num_candidates.data();
  }

  const StepBatch& batch;
  precast_step_t view{};
  std::vector<const std::int32_t*> block_tables;
  std::vector<std::int32_t> widths;
  std::vector<precast_token_source_t> sources;
  std::size_t num_rows;
  std::size_t num_logits = 0;
  std::size_t num_with_candidates = 0;
};

class ExternalSession final : public Session {
 public:
  ExternalSession(const precast_session_table_t& table, const precast_session_config_t& config, bool gives_results)
      : table_(table),
        vocab_size_(config.vocab_size),
        gives_results_(gives_results),
        candidate_check_(config.vocab_size) {
    precast_session_properties_t properties{};
    properties.struct_size = sizeof properties;
    check(table_.create(table_.user_data, &config, &properties, &session_));
    num_blocks_ = properties.num_blocks;
    max_in_flight_ = properties.max_in_flight;
    if (properties.device != nullptr) device_ = properties.device;
    chooses_tokens_ = properties.chooses_tokens != 0;
    max_candidates_ = properties.max_candidates;
  }

  ~ExternalSession() override { table_.destroy(session_); }
  ExternalSession(const ExternalSession&) = delete;
  ExternalSession& operator=(const ExternalSession&) = delete;

  std::uint32_t num_blocks() const noexcept { return num_blocks_; }
  const std::string& device() const noexcept { return device_; }
  std::size_t max_in_flight() const noexcept override { return max_in_flight_; }
  bool chooses_tokens() const noexcept override { return chooses_tokens_; }
  std::size_t max_candidates() const noexcept override { return max_candidates_; }

  void enqueue(const StepBatch& batch) override {
    auto step = std::make_unique<ExternalStep>(batch);
    const precast_step_t& view = step->view;
    in_flight_.push_back(std::move(step));
    if (precast_error_t* error = table_.enqueue(session_, &view)) {
      in_flight_.pop_back();
      check(error);
    }
  }

  StepResult collect(std::uint64_t step) override {
    const std::unique_ptr<ExternalStep> oldest = std::move(in_flight_.front());
    in_flight_.pop_front();
    precast_step_result_t result{};
    result.struct_size = sizeof result;
    check(table_.collect(session_, step, &result));
    if (!gives_results_) return {};
    return to_result(*oldest, result);
  }

  bool is_done(std::uint64_t step) override {
    if (table_.is_done == nullptr) return true;
    std::uint32_t done = 0;
    check(table_.is_done(session_, step, &done));
    return done != 0;
  }

  void cancel(std::uint64_t step) override {
    if (table_.cancel != nullptr) table_.cancel(session_, step);
  }

 private:
  template <typename... Parts>
  [[noreturn]] static void refuse(const ExternalStep& step, const Parts&... parts) {
    throw Error(ErrorCode::internal, concat("the session's result of step ", step.view.id, " ", parts...));
  }

  StepResult to_result(const ExternalStep& step, const precast_step_result_t& result) {
    StepResult to;
    if (step.num_logits > 0) {
      if (result.logits == nullptr) refuse(step, "has no logits, and ", step.num_logits, " rows need them");
      to.logits = {result.logits, step.num_logits * vocab_size_};
    }
    if (chooses_tokens_ && step.num_rows > 0) take_tokens(step, result, to);
    if (step.num_with_candidates > 0) take_candidates(step, result, to);
    return to;
  }

  void take_tokens(const ExternalStep& step, const precast_step_result_t& result, StepResult& to) const {
    if (result.token_ids == nullptr) refuse(step, "has no token_ids, though the session chooses tokens");
    to.token_ids = {result.token_ids, step.num_rows};
    for (std::size_t row = 0; row < step.num_rows; ++row) {
      const std::int32_t token = to.token_ids[row];
      if (token < -1 || (token >= 0 && static_cast<std::size_t>(token) >= vocab_size_)) {
        refuse(step, "has token_ids[", row, "] ", token, ", outside the vocabulary of ", vocab_size_);
      }
    }
  }

  void take_candidates(const ExternalStep& step, const precast_step_result_t& result, StepResult& to) {
    const auto require_array = [&](const void* array, const char* name) {
      if (array == nullptr) refuse(step, "has no ", name, ", and ", step.num_with_candidates, " rows want candidates");
    };
    require_array(result.candidate_ids, "candidate_ids");
    require_array(result.candidate_logits, "candidate_logits");
    require_array(result.log_sums, "log_sums");
    to.candidate_ids = {result.candidate_ids, step.num_with_candidates * max_candidates_};
    to.candidate_logits = {result.candidate_logits, step.num_with_candidates * max_candidates_};
    to.log_sums = {result.log_sums, step.num_with_candidates};
    ResultRows rows(step.batch, to, vocab_size_, max_candidates_);
    for (std::size_t r = 0; r < step.num_rows; ++r) {
      const Candidates candidates = rows.next().candidates;
      if (candidates.ids.empty()) continue;
      if (const auto problem = candidate_check_.find_problem(candidates)) refuse(step, "has for row ", r, " ", *problem);
    }
  }

  const precast_session_table_t table_;
  const std::size_t vocab_size_;
  const bool gives_results_;
  void* session_ = nullptr;
  std::string device_;
  std::uint32_t num_blocks_ = 0;
  std::size_t max_in_flight_ = 0;
  bool chooses_tokens_ = false;
  std::size_t max_candidates_ = 0;
  CandidateCheck candidate_check_;
  std::deque<std::unique_ptr<ExternalStep>> in_flight_;  // their arrays stay until they are collected
};

precast_error_t* exchange(void* data, const void* mine, std::size_t size, void* all) {
  return guarded([&] {
    const auto& from = *static_cast<const SessionConfig*>(data);
    require(mine != nullptr && all != nullptr, "an argument of exchange is NULL");
    if (size > StepMemory::most_exchanged_bytes) {
      throw Error(ErrorCode::invalid_argument, concat("exchange of ", size, " bytes; it takes at most ",
                                                      StepMemory::most_exchanged_bytes));
    }
    from.exchange({static_cast<const std::byte*>(mine), size}, {static_cast<std::byte*>(all), size * from.world_size});
  });
}

MadeSession make(const precast_session_table_t& table, const SessionConfig& from) {
  precast_session_config_t config{};
  config.struct_size = sizeof config;
  config.engine_path = from.engine_path.c_str();
  config.kv_cache_bytes = from.kv_cache_bytes;
  config.max_batch_size = from.max_batch_size;
  config.max_num_tokens = from.max_num_tokens;
  config.max_seq_len = from.max_seq_len;
  config.tokens_per_block = from.tokens_per_block;
  config.num_kv_groups = from.num_kv_groups;
  config.vocab_size = from.vocab_size;
  config.rank = from.rank;
  config.world_size = from.world_size;
  SessionConfig shown = from;
  if (from.exchange) {
    config.exchange = exchange;
    config.exchange_data = &shown;
  }
  auto session = std::make_unique<ExternalSession>(table, config, from.gives_results);
  const std::uint32_t num_blocks = session->num_blocks();
  if (num_blocks < 1 || num_blocks > INT32_MAX / 2) {
    throw Error(ErrorCode::invalid_argument, concat("the session has num_blocks ", num_blocks, "; it needs 1 to ",
                                                    INT32_MAX / 2));
  }
  if (session->max_in_flight() < 1 || session->max_in_flight() > most_in_flight) {
    throw Error(ErrorCode::invalid_argument, concat("the session has max_in_flight ", session->max_in_flight(),
                                                    "; it must be 1 to ", most_in_flight));
  }
  if (session->max_candidates() > std::min<std::size_t>(most_candidates, from.vocab_size)) {
    throw Error(ErrorCode::invalid_argument,
                concat("the session has max_candidates ", session->max_candidates(), "; it must be 0 to ", most_candidates,
                       ", and at most the vocabulary of ", from.vocab_size));
  }
  std::string device = session->device();
  return {std::move(session), num_blocks, std::move(device)};
}

}  // namespace

SessionFactory external_session_factory(const precast_session_table_t* table) {
  if (table == nullptr) return {};
  precast_session_table_t known{};
  read_struct(table, "precast_session_table_t", known);
  if (known.version != table_version) {
    throw Error(ErrorCode::invalid_argument, concat("precast_session_table_t.version is ", known.version,
                                                    "; this library knows ", table_version));
  }
  require(known.create != nullptr, "create of precast_session_table_t is NULL");
  require(known.enqueue != nullptr, "enqueue of precast_session_table_t is NULL");
  require(known.collect != nullptr, "collect of precast_session_table_t is NULL");
  require(known.destroy != nullptr, "destroy of precast_session_table_t is NULL");
  return [known](const SessionConfig& config) { return make(known, config); };
}

}  // namespace precast
