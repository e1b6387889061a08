// Whole random histories against a model session (model_session.h): whatever the configuration and whatever happens, each
// sequence's tokens are those that it has when it runs alone, every request ends once, and every block comes back.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "tests/native/check.h"
#include "tests/native/model_session.h"

using namespace precast;
using namespace precast::test;

namespace {

constexpr std::int32_t vocab_size = 3;  // few, so that outputs of some are prompts of others

class History {
 public:
  explicit History(std::uint64_t seed) : random_(seed), config_(random_config()), scheduler_(config_), session_(config_, truths_) {}

  void run(std::size_t num_actions) {
    for (std::size_t i = 0; i < num_actions; ++i) act();
    drain();
    check_end();
  }

 private:
  std::size_t below(std::size_t bound) { return static_cast<std::size_t>(random_() % bound); }
  bool chance(std::size_t percent) { return below(100) < percent; }

  SchedulerConfig random_config() {
    static const std::vector<std::vector<std::int64_t>> windows{{0}, {0}, {}, {1}, {3}, {5}, {0, 2}, {0, 4}, {7, 3}, {0, 0}};
    SchedulerConfig config;
    config.policy = static_cast<CapacityPolicy>(below(3));
    config.max_batch_size = 1 + below(4);
    config.max_num_tokens = config.max_batch_size + below(12);
    config.max_in_flight = 1 + below(3);
    config.session_chooses_tokens = chance(50);
    config.max_candidates = chance(50) ? 0 : 1 + below(vocab_size);
    config.kv.tokens_per_block = 1 + below(5);
    config.kv.windows = windows[below(windows.size())];
    config.kv.reuse = chance(90);
    config.kv.events_size = 1000;
    config.kv.num_blocks = 1;
    max_length_ = 4 + below(20);
    const std::size_t peak = Scheduler(config).peak_blocks(max_length_);
    config.kv.num_blocks = static_cast<std::int32_t>(std::max<std::size_t>(1, peak + below(chance(50) ? 3 : 3 * peak + 1)));
    return config;
  }

  void act() {
    ++now_ns_;
    switch (below(16)) {
      case 0:
      case 1:
      case 2: submit(); break;
      case 3: if (chance(50)) cancel(); break;
      case 4: scheduler_.expire(now_ns_, emit_); break;
      case 5: if (chance(20)) scheduler_.reset_prefix_cache(); break;
      case 6: if (chance(30)) collect(true); break;
      case 7: if (chance(15)) enqueue(true); break;
      case 8:
      case 9:
      case 10:
      case 11: enqueue(false); break;
      default: collect(false);
    }
    audit();
  }

  void audit() {
    scheduler_.check_integrity();
    for (const KvEvent& event : scheduler_.take_kv_events()) {
      CHECK_EQ(event.id, next_event_id_++);
      if (event.kind == KvEvent::Kind::stored) {
        for (const StoredBlock& block : event.stored) {
          CHECK_EQ(block.token_ids.size(), config_.kv.tokens_per_block);
          CHECK(findable_.insert(block.key).second);
        }
      }
      for (const BlockKey& key : event.removed) CHECK_EQ(findable_.erase(key), 1U);
      if (event.kind == KvEvent::Kind::updated) CHECK(findable_.contains(event.updated));
    }
  }

  void submit() {
    const std::uint64_t id = next_id_++;
    std::vector<std::int32_t> prompt(1 + below(max_length_ - 1));
    const auto first = static_cast<std::int32_t>(below(2));  // two families of prompts
    const std::size_t common = below(prompt.size() + 1);
    for (std::size_t i = 0; i < prompt.size(); ++i) {
      prompt[i] = i < common ? first : static_cast<std::int32_t>(below(vocab_size));
    }
    const std::size_t num_sequences = chance(80) ? 1 : 2 + below(2);
    const std::string salt = chance(75) ? "" : "salt";
    const auto group = std::make_shared<RequestGroup>(RequestGroup{id, num_sequences});
    Request first_sequence;
    first_sequence.group = group;
    first_sequence.num_prompt_tokens = prompt.size();
    first_sequence.token_ids = prompt;
    first_sequence.sampling.max_tokens = static_cast<std::int32_t>(1 + below(max_length_ - prompt.size()));
    first_sequence.sampling.temperature = chance(70) ? 0.0F : 1.0F;
    if (chance(30)) first_sequence.sampling.top_k = static_cast<std::int32_t>(below(vocab_size + 1));
    if (chance(30)) first_sequence.sampling.num_logprobs = static_cast<std::int32_t>(below(vocab_size + 1));
    if (chance(15)) {
      const auto max_tokens = static_cast<std::size_t>(first_sequence.sampling.max_tokens);
      first_sequence.sampling.min_tokens = static_cast<std::int32_t>(below(max_tokens + 1));
    }
    if (chance(15)) first_sequence.sampling.stop_token_ids = {static_cast<std::int32_t>(below(vocab_size))};
    first_sequence.use_logits_processor = chance(10);
    first_sequence.priority = 0.25F * static_cast<float>(1 + below(3));
    first_sequence.arrival_ns = now_ns_;
    if (chance(10)) first_sequence.deadline_ns = now_ns_ + static_cast<std::int64_t>(below(30));
    std::vector<RetentionRange> retention;
    while (chance(25)) {
      retention.push_back({.start_token = static_cast<std::uint32_t>(below(8)),
                           .end_token = chance(50) ? 0 : static_cast<std::uint32_t>(8 + below(8)),
                           .priority = static_cast<std::uint32_t>(below(101)),
                           .duration_ns = static_cast<std::int64_t>(below(20))});
    }
    first_sequence.kv = scheduler_.kv().open(salt, retention, chance(10));
    std::vector<std::shared_ptr<Request>> sequences;
    for (std::size_t i = 0; i < num_sequences; ++i) {
      sequences.push_back(std::make_shared<Request>(first_sequence));
      sequences.back()->sequence = static_cast<std::uint32_t>(i);
      truths_.emplace(sequences.back().get(),
                      Truth(prompt, first_sequence.max_length(), salt.size(), i, vocab_size));
    }
    all_.insert(all_.end(), sequences.begin(), sequences.end());
    scheduler_.add(std::move(sequences));
  }

  void cancel() {
    if (next_id_ == 1) return;
    const std::uint64_t id = 1 + below(next_id_ - 1);
    const bool unfinished = std::ranges::any_of(
        all_, [id](const auto& request) { return request->group->id == id && !request->finished(); });
    CHECK_EQ(scheduler_.cancel(id, emit_), unfinished);
  }

  std::vector<std::shared_ptr<Request>> unfinished() const {
    std::vector<std::shared_ptr<Request>> found;
    std::ranges::copy_if(all_, std::back_inserter(found), [](const auto& request) { return !request->finished(); });
    return found;
  }

  /// False: nothing can advance, or no further step may be in flight.
  bool enqueue(bool refuse) {
    if (session_.num_in_flight() >= config_.max_in_flight) return false;
    auto step = std::make_unique<ScheduledStep>(scheduler_.schedule(++now_ns_));
    scheduler_.check_integrity();
    if (step->sequences.empty()) return false;
    ++num_steps_;
    if (refuse) {
      scheduler_.fail(*step, Error(ErrorCode::onnxruntime, "refused"), emit_);
    } else {
      session_.enqueue(std::move(step), unfinished());
    }
    return true;
  }

  void collect(bool fails) {
    if (session_.num_in_flight() == 0) return;
    if (fails) {
      const auto step = session_.collect_failed();
      scheduler_.fail(*step, Error(ErrorCode::onnxruntime, "failed"), emit_);
    } else {
      const auto [step, sampled] = session_.collect();
      scheduler_.update(*step, sampled, emit_);
    }
  }

  void drain() {
    for (int i = 0; scheduler_.has_unfinished() || session_.num_in_flight() > 0; ++i) {
      CHECK(i < 10'000);
      while (enqueue(false)) audit();
      CHECK(session_.num_in_flight() > 0);  // else nobody can advance
      collect(false);
      audit();
    }
  }

  void check_end() const {
    CHECK_EQ(scheduler_.num_running() + scheduler_.num_waiting() + scheduler_.num_paused(), 0U);
    CHECK_EQ(scheduler_.num_unscheduled(), 0U);
    CHECK_EQ(scheduler_.kv().pool().num_free(), config_.kv.num_blocks);
    CHECK_EQ(scheduler_.kv().num_window_blocks(), 0U);
    CHECK(!scheduler_.kv().has_retiring());
    std::map<std::pair<std::uint64_t, std::uint32_t>, std::vector<std::int32_t>> tokens;
    std::map<std::pair<std::uint64_t, std::uint32_t>, Event> ends;
    std::set<std::uint64_t> over;
    for (const Event& event : events_) {
      const std::pair key(event.request_id, event.sequence);
      CHECK(!ends.contains(key));
      CHECK(!over.contains(event.request_id));
      if (event.finish_reason == FinishReason::none) {
        tokens[key].push_back(event.token_id);
      } else {
        ends.emplace(key, event);
        if (event.is_last) over.insert(event.request_id);
      }
    }
    for (const auto& request : all_) {
      const std::pair key(request->group->id, request->sequence);
      CHECK(over.contains(request->group->id));
      check_output(*request, tokens[key], ends.at(key));
    }
  }

  /// A whole output, or of a request that was ended early a part of it.
  void check_output(const Request& request, const std::vector<std::int32_t>& tokens, const Event& end) const {
    const std::vector<std::int32_t>& truth = truths_.at(&request).token_ids;
    std::vector<std::int32_t> expected(truth.begin() + static_cast<std::ptrdiff_t>(request.num_prompt_tokens), truth.end());
    FinishReason reason = FinishReason::length;
    if (!request.sampling.stop_token_ids.empty()) {
      const auto stop = std::find(expected.begin() + request.sampling.min_tokens, expected.end(),
                                  request.sampling.stop_token_ids.front());
      if (stop != expected.end()) {
        expected.erase(stop + 1, expected.end());
        reason = FinishReason::stop;
      }
    }
    if (end.finish_reason == FinishReason::length || end.finish_reason == FinishReason::stop) {
      CHECK(end.finish_reason == reason);
      CHECK(tokens == expected);
    } else {
      CHECK(tokens.size() < expected.size() && std::equal(tokens.begin(), tokens.end(), expected.begin()));
    }
    CHECK_EQ(end.num_output_tokens, tokens.size());
    CHECK(end.num_cached_tokens < request.num_prompt_tokens || end.num_cached_tokens == 0);
  }

  std::mt19937_64 random_;
  std::size_t max_length_ = 0;
  SchedulerConfig config_;
  Scheduler scheduler_;
  ModelSession::Truths truths_;
  ModelSession session_;
  std::vector<std::shared_ptr<Request>> all_;
  std::vector<Event> events_;
  Scheduler::Emit emit_ = [this](Event event) { events_.push_back(std::move(event)); };
  std::set<BlockKey> findable_;
  std::uint64_t next_event_id_ = 0;
  std::uint64_t next_id_ = 1;
  std::int64_t now_ns_ = 0;
  std::size_t num_steps_ = 0;
};

/// What went wrong; "": nothing.
std::string problem_of(std::uint64_t seed, std::size_t num_actions) {
  try {
    History(seed).run(num_actions);
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}

}  // namespace

TEST("random histories: every sequence gets the tokens it has alone, ends once, and all blocks come back") {
  constexpr std::size_t num_actions = 120;
  const char* const first = std::getenv("PRECAST_TEST_SEED");  // to repeat one, or to go further
  const char* const count = std::getenv("PRECAST_TEST_HISTORIES");
  const std::uint64_t begin = first != nullptr ? std::strtoull(first, nullptr, 10) : 1;
  const std::uint64_t end = begin + (count != nullptr ? std::strtoull(count, nullptr, 10) : 400);
  for (std::uint64_t seed = begin; seed < end; ++seed) {
    std::string problem = problem_of(seed, num_actions);
    if (problem.empty()) continue;
    std::size_t shortest = num_actions;  // the same history, cut as early as it still fails
    for (std::size_t shorter = 1; shorter < num_actions; ++shorter) {
      const std::string found = problem_of(seed, shorter);
      if (found.empty()) continue;
      shortest = shorter;
      problem = found;
      break;
    }
    fail(__FILE__, __LINE__, concat("PRECAST_TEST_SEED=", seed, ", after ", shortest, " actions: ", problem));
  }
}
