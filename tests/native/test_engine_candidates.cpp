// The engine around a session that gives whole rows, candidates and tokens: whichever it gives, requests get the same.
#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "runtime/native/src/engine.h"
#include "tests/native/candidates_of.h"
#include "tests/native/check.h"
#include "tests/native/late_session.h"
#include "tests/native/model_session.h"
#include "tests/native/waiting.h"

using namespace precast;
using namespace precast::test;

namespace {

constexpr std::int32_t vocab_size = 300;

/// What a session can do, and what it has been asked for.
struct Abilities {
  bool chooses_tokens = false;
  std::size_t max_candidates = 0;
  std::size_t max_in_flight = 1;
  std::size_t num_whole_rows = 0;
  std::size_t num_rows_of_candidates = 0;
  std::size_t num_tokens_alone = 0;
  std::size_t num_token_sources = 0;
  Gate gate{true};                      // steps are collected
  std::atomic<int> num_collecting = 0;  // calls of collect
};

/// Logits are a function of the last token and its position; many of them are equal.
class RowSession final : public Session {
 public:
  explicit RowSession(Abilities& abilities) : abilities_(abilities) {}

  std::size_t max_in_flight() const noexcept override { return abilities_.max_in_flight; }
  bool chooses_tokens() const noexcept override { return abilities_.chooses_tokens; }
  std::size_t max_candidates() const noexcept override { return abilities_.max_candidates; }

  void enqueue(const StepBatch& batch) override { in_flight_.push_back(&batch); }

  StepResult collect(std::uint64_t step) override {
    ++abilities_.num_collecting;
    abilities_.gate.pass();
    const StepBatch& batch = *in_flight_.front();
    in_flight_.pop_front();
    CHECK_EQ(batch.id, step);
    std::vector<std::int32_t> tokens = batch.token_ids;
    for (const TokenSource& source : batch.token_sources) {
      tokens.at(static_cast<std::size_t>(source.row)) =
          chosen_.at(source.source_step).at(static_cast<std::size_t>(source.source_row));
    }
    abilities_.num_token_sources += batch.token_sources.size();
    logits_.clear();
    ids_.clear();
    candidate_logits_.clear();
    log_sums_.clear();
    std::vector<std::int32_t>& chosen = chosen_[step];
    for (std::size_t r = 0; r < batch.logit_rows.size(); ++r) {
      const std::int32_t row = batch.logit_rows[r];
      std::size_t s = 0;
      while (batch.query_starts[s + 1] <= row) ++s;
      chosen.push_back(give(batch, r, logits_behind(tokens.at(static_cast<std::size_t>(row)), batch.context_lengths[s])));
    }
    StepResult result{.logits = logits_, .candidate_ids = ids_, .candidate_logits = candidate_logits_, .log_sums = log_sums_};
    if (abilities_.chooses_tokens) result.token_ids = chosen;
    return result;
  }

 private:
  static std::vector<float> logits_behind(std::int32_t token, std::int32_t position) {
    std::vector<float> logits(vocab_size);
    for (std::size_t i = 0; i < logits.size(); ++i) {
      const std::uint64_t random = mix(static_cast<std::uint64_t>(token) << 40 | static_cast<std::uint64_t>(position) << 20 | i);
      logits[i] = 0.25F * static_cast<float>(random % 32);
    }
    return logits;
  }

  /// What row `r` of the step asks for. Returns its largest logit's token.
  std::int32_t give(const StepBatch& batch, std::size_t r, const std::vector<float>& row) {
    const auto count = static_cast<std::size_t>(batch.num_candidates.at(r));
    const FoundCandidates found = candidates_of(row, std::max<std::size_t>(1, count));
    if (batch.needs_logits.at(r) != 0) {
      CHECK_EQ(count, 0U);
      ++abilities_.num_whole_rows;
      logits_.insert(logits_.end(), row.begin(), row.end());
    } else if (count > 0) {
      CHECK(count <= abilities_.max_candidates);
      ++abilities_.num_rows_of_candidates;
      log_sums_.push_back(found.log_sum);
      ids_.insert(ids_.end(), found.ids.begin(), found.ids.end());
      ids_.resize(log_sums_.size() * abilities_.max_candidates, -7);
      candidate_logits_.insert(candidate_logits_.end(), found.logits.begin(), found.logits.end());
      candidate_logits_.resize(log_sums_.size() * abilities_.max_candidates, NAN);
    } else {
      CHECK(abilities_.chooses_tokens);
      ++abilities_.num_tokens_alone;
    }
    return found.ids.front();
  }

  Abilities& abilities_;
  std::deque<const StepBatch*> in_flight_;
  std::map<std::uint64_t, std::vector<std::int32_t>> chosen_;  // of each step
  std::vector<float> logits_;
  std::vector<std::int32_t> ids_;
  std::vector<float> candidate_logits_;
  std::vector<float> log_sums_;
};

std::unique_ptr<Engine> engine_with(Abilities& abilities) {
  SchedulerConfig config{.policy = CapacityPolicy::max_utilization,  // some are preempted, and their rows are nobody's
                         .max_batch_size = 8,
                         .max_num_tokens = 16,
                         .max_in_flight = abilities.max_in_flight,
                         .session_chooses_tokens = abilities.chooses_tokens,
                         .max_candidates = abilities.max_candidates,
                         .kv = {.tokens_per_block = 4, .num_blocks = 24}};
  EngineSettings settings;
  settings.audit = true;
  const EngineLimits limits{.vocab_size = vocab_size, .max_seq_len = 64, .eos_token_ids = {3}};
  return std::make_unique<Engine>(std::make_unique<RowSession>(abilities), config, limits, settings);
}

/// Requests of every kind.
std::vector<Submission> submissions() {
  std::vector<Submission> all;
  for (std::uint64_t id = 1; id <= 24; ++id) {
    Submission made = greedy(id, Ids(1 + id % 7, static_cast<std::int32_t>(id)), 12, id % 5 == 0 ? 3 : 1);
    SamplingParams& sampling = made.sampling;
    sampling.num_logprobs = std::array{-1, 0, 5, 40}[id % 4];
    if (id % 3 != 0) {
      sampling.temperature = 0.8F;
      sampling.top_k = std::array{1, 7, 20, 33, 0}[id % 5];
      sampling.top_p = id % 2 == 0 ? 0.9F : 1.0F;
      sampling.min_p = id % 7 == 0 ? 0.1F : 0.0F;
      sampling.seed = id;
    }
    if (id % 8 == 1) sampling.min_tokens = 5;
    if (id % 8 == 2) sampling.frequency_penalty = 1.0F;
    if (id % 8 == 3) sampling.bad_words = {{17, 18}, {40}};
    all.push_back(std::move(made));
  }
  return all;
}

using Sequence = std::pair<std::uint64_t, std::uint32_t>;
using Output = std::map<Sequence, std::vector<Event>>;

Output run(Abilities& abilities) {
  const auto engine = engine_with(abilities);
  engine->submit(submissions());
  std::size_t num_sequences = 0;
  for (const Submission& submission : submissions()) num_sequences += submission.n;
  Output output;
  for (Event& event : wait_for_ends(*engine, num_sequences)) {
    output[{event.request_id, event.sequence}].push_back(std::move(event));
  }
  CHECK(engine->stats().num_preemptions > 0);
  return output;
}

void check_same(const Output& output, const Output& expected) {
  CHECK_EQ(output.size(), expected.size());
  for (const auto& [sequence, events] : output) {
    const std::vector<Event>& others = expected.at(sequence);
    CHECK_EQ(events.size(), others.size());
    for (std::size_t i = 0; i < events.size(); ++i) {
      CHECK(!events[i].error);
      CHECK_EQ(events[i].token_id, others[i].token_id);
      CHECK(events[i].finish_reason == others[i].finish_reason);
      CHECK_EQ(events[i].logprobs.size(), others[i].logprobs.size());
      for (std::size_t k = 0; k < events[i].logprobs.size(); ++k) {
        CHECK_EQ(events[i].logprobs[k].token_id, others[i].logprobs[k].token_id);
        CHECK_EQ(events[i].logprobs[k].rank, others[i].logprobs[k].rank);
        CHECK(std::abs(events[i].logprobs[k].logprob - others[i].logprobs[k].logprob) < 1e-5F);
      }
    }
  }
}

}  // namespace

TEST("an engine gives the same from tokens, candidates and whole rows") {
  Abilities rows_only;
  const Output expected = run(rows_only);
  CHECK(rows_only.num_whole_rows > 200);
  for (const bool chooses : {false, true}) {
    for (const std::size_t max_candidates : {std::size_t{0}, std::size_t{8}, std::size_t{40}, std::size_t{vocab_size}}) {
      for (const std::size_t max_in_flight : {std::size_t{1}, std::size_t{2}}) {
        Abilities abilities{.chooses_tokens = chooses, .max_candidates = max_candidates, .max_in_flight = max_in_flight};
        check_same(run(abilities), expected);
        CHECK(abilities.num_whole_rows > 0);  // what edits logits
        CHECK_EQ(abilities.num_rows_of_candidates > 0, max_candidates > 0);
        CHECK_EQ(abilities.num_tokens_alone > 0, chooses);
        CHECK_EQ(abilities.num_token_sources > 0, chooses && max_in_flight > 1);
      }
    }
  }
}

TEST("candidates of a request that has ended are passed over") {
  const auto tokens_of = [](bool cancels) {
    Abilities abilities{.max_candidates = 40, .max_in_flight = 2};
    abilities.gate.close();
    const auto engine = engine_with(abilities);
    std::vector<Submission> all{greedy(9, Ids(16, 9), 1)};  // fills the first step: the others are in the second
    for (std::uint64_t id = 1; id <= 3; ++id) {
      all.push_back(greedy(id, {static_cast<std::int32_t>(id)}, 2));
      all.back().sampling.temperature = 1.0F;
      all.back().sampling.top_k = 20;
    }
    engine->submit(std::move(all));
    CHECK(comes_true([&] { return abilities.num_collecting > 0; }));
    if (cancels) CHECK(engine->cancel(1));  // which is noticed when the first step has been collected
    abilities.gate.open();
    std::map<std::uint64_t, Ids> tokens;
    for (const Event& event : wait_for_ends(*engine, 4)) {
      if (event.finish_reason == FinishReason::none) tokens[event.request_id].push_back(event.token_id);
    }
    CHECK_EQ(abilities.num_rows_of_candidates, cancels ? 6U : 7U);  // its row of the second step is there, and nobody's
    return tokens;
  };
  std::map<std::uint64_t, Ids> all = tokens_of(false);
  std::map<std::uint64_t, Ids> others = tokens_of(true);
  CHECK(others[1].empty());
  all.erase(1);
  others.erase(1);
  CHECK(others == all);
}
