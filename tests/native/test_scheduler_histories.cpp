// Whole histories of a scheduler, drawn at random: any configuration, any requests, anything that can go wrong, steps that
// are collected late. A simulated memory knows what every position of every block holds, so a block that is shared wrongly,
// given away too early or never written is caught where a row looks at it; and every token is a pure function of the tokens
// before it, so what a request gives is known before it is added.
#include <algorithm>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "runtime/native/src/concat.h"
#include "runtime/native/src/scheduler.h"
#include "tests/native/check.h"
#include "tests/native/scheduler_world.h"

using namespace precast;
using namespace precast::test;

namespace {

constexpr std::int32_t vocab_size = 50;
constexpr std::int32_t end_of_sequence = 7;
constexpr std::uint64_t nothing = 0;  // what a position holds that was never written, or whose step failed

std::uint64_t mix(std::uint64_t hash, std::int32_t token) {
  std::uint64_t x = hash ^ (static_cast<std::uint64_t>(token) + 0x9E3779B97F4A7C15U);
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9U;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBU;
  return (x ^ (x >> 31)) | 1;  // never `nothing`
}

/// All that a request can give: its prompt, its output to the last possible token, and a name for each prefix.
struct Story {
  Ids tokens;
  std::vector<std::uint64_t> prefixes;  // prefixes[p] names tokens[0 .. p]
  std::size_t num_prompt_tokens = 0;
  bool stops = false;  // at end_of_sequence

  Story(const Ids& prompt, std::int32_t max_tokens, bool may_stop) : num_prompt_tokens(prompt.size()) {
    std::uint64_t hash = 1;
    for (const std::int32_t token : prompt) add(token, hash);
    for (std::int32_t i = 0; i < max_tokens && !stops; ++i) {
      add(static_cast<std::int32_t>((hash >> 8) % vocab_size), hash);
      stops = may_stop && tokens.back() == end_of_sequence;
    }
  }

  Ids output() const { return {tokens.begin() + static_cast<std::ptrdiff_t>(num_prompt_tokens), tokens.end()}; }

 private:
  void add(std::int32_t token, std::uint64_t& hash) {
    hash = mix(hash, token);
    tokens.push_back(token);
    prefixes.push_back(hash);
  }
};

class History {
 public:
  explicit History(std::uint64_t seed) : random_(seed), config_(draw_config()), world_(config_) {
    memory_.resize(static_cast<std::size_t>(config_.kv.num_blocks) * config_.kv.tokens_per_block, nothing);
  }

  /// Does `num_actions` things at random, then lets everything end.
  void run(std::size_t num_actions) {
    for (std::size_t i = 0; i < num_actions; ++i) act(below(16));
    for (std::size_t i = 0; world_.scheduler.has_unfinished() || !in_flight_.empty(); ++i) {
      CHECK(i < 20'000);  // else nothing advances any more
      if (!schedule()) collect(false);
    }
    check_ends();
  }

  std::string describe() const {
    std::ostringstream out;
    out << "policy " << static_cast<int>(config_.policy) << ", batch " << config_.max_batch_size << ", budget "
        << config_.max_num_tokens << ", in flight " << config_.max_in_flight << ", chooses "
        << config_.session_chooses_tokens << ", blocks " << config_.kv.num_blocks << " of " << config_.kv.tokens_per_block
        << ", windows";
    for (const std::int64_t window : config_.kv.windows) out << ' ' << window;
    return out.str();
  }

 private:
  std::uint32_t below(std::uint32_t end) { return static_cast<std::uint32_t>(random_() % end); }

  SchedulerConfig draw_config() {
    SchedulerConfig config;
    config.policy = static_cast<CapacityPolicy>(below(3));
    config.max_batch_size = 1 + below(5);
    config.max_num_tokens = config.max_batch_size + below(16);
    config.max_in_flight = 1 + below(3);
    config.session_chooses_tokens = below(2) == 0;
    config.kv.tokens_per_block = 1 + below(5);
    config.kv.reuse = below(5) != 0;
    config.kv.events_size = below(2) * 10;
    config.kv.secret = {random_(), random_()};
    static const std::vector<std::vector<std::int64_t>> windows = {{0}, {0}, {0}, {6}, {2}, {0, 4}, {0, 3, 9}};
    config.kv.windows = windows[below(static_cast<std::uint32_t>(windows.size()))];
    // From barely one request to many.
    config.kv.num_blocks = 1 << 20;
    const auto one = Scheduler(config).peak_blocks(max_length);
    config.kv.num_blocks = static_cast<std::int32_t>(one + below(2) * below(3 * static_cast<std::uint32_t>(one)));
    return config;
  }

  void act(std::uint32_t what) {
    ++now_ns_;
    if (what < 4) add();
    else if (what < 9) schedule();
    else if (what < 13) collect(below(20) == 0);
    else if (what == 13 && !stories_.empty()) world_.scheduler.cancel(1 + below(num_added_), world_.emit);
    else if (what == 14) world_.scheduler.expire(now_ns_, world_.emit);
    else if (below(20) == 0) world_.scheduler.reset_prefix_cache();
    world_.scheduler.check_integrity();
  }

  void add() {
    Ids prompt;
    for (std::uint32_t block = below(4); block > 0; --block) {
      const auto first = static_cast<std::int32_t>(below(2) * 20);
      for (std::size_t i = 0; i < config_.kv.tokens_per_block; ++i) prompt.push_back(first + static_cast<std::int32_t>(i));
    }
    for (std::uint32_t i = 1 + below(5); i > 0; --i) prompt.push_back(static_cast<std::int32_t>(below(vocab_size)));
    prompt.resize(std::min<std::size_t>(prompt.size(), max_length - 1));
    const auto max_tokens =
        static_cast<std::int32_t>(1 + below(static_cast<std::uint32_t>(max_length - prompt.size())));
    const bool may_stop = below(2) == 0;
    const std::uint64_t id = ++num_added_;
    stories_.emplace(id, Story(prompt, max_tokens, may_stop));
    std::vector<RetentionRange> retention;
    if (below(4) == 0) retention = {{below(6), 0, below(101), below(2) * 20}};
    auto first = world_.request(id, prompt, max_tokens, below(4) == 0 ? "salt" : "", retention);
    first->kv.skip_reuse = below(8) == 0;
    first->priority = static_cast<float>(below(3));
    if (may_stop) first->sampling.eos_token_ids = {end_of_sequence};
    if (below(4) == 0) first->sampling.num_logprobs = 0;  // does not run ahead
    if (below(6) == 0) first->deadline_ns = now_ns_ + below(100);
    std::vector<std::shared_ptr<Request>> sequences{first};
    if (below(6) == 0) {
      sequences.push_back(std::make_shared<Request>(*first));
      sequences.back()->sequence = 1;
    }
    first->group->num_unfinished = sequences.size();
    num_sequences_ += sequences.size();
    world_.scheduler.add(sequences);
  }

  /// False: nothing to do, or as many steps are in flight as may be.
  bool schedule() {
    if (in_flight_.size() >= config_.max_in_flight) return false;
    ScheduledStep step = world_.schedule(now_ns_);
    if (step.sequences.empty()) return false;
    CHECK(step.batch.num_tokens() <= config_.max_num_tokens);
    CHECK(step.sequences.size() <= config_.max_batch_size);
    check_writers(step);
    in_flight_.push_back(std::move(step));
    return true;
  }

  /// What a step writes, no other sequence's step in flight may see.
  void check_writers(const ScheduledStep& step) const {
    std::set<std::int32_t> written;
    for (std::size_t s = 0; s < step.sequences.size(); ++s) {
      for_each_written_block(step, s, [&](std::int32_t block) {
        CHECK(written.insert(block).second);  // by one sequence only
        for (const ScheduledStep& earlier : in_flight_) {
          for (std::size_t t = 0; t < earlier.sequences.size(); ++t) {
            const ScheduledSequence& other = earlier.sequences[t];
            const ScheduledSequence& self = step.sequences[s];
            if (other.request == self.request && other.epoch == self.epoch) continue;
            for (std::size_t group = 0; group < config_.kv.windows.size(); ++group) {
              const Ids blocks = blocks_of(earlier, t, group);
              const std::size_t first = first_visible(group, other.end - other.num_tokens) / config_.kv.tokens_per_block;
              CHECK(std::find(blocks.begin() + static_cast<std::ptrdiff_t>(first), blocks.end(), block) == blocks.end());
            }
          }
        }
      });
    }
  }

  void for_each_written_block(const ScheduledStep& step, std::size_t s, const std::function<void(std::int32_t)>& f) const {
    const ScheduledSequence& sequence = step.sequences[s];
    const std::size_t size = config_.kv.tokens_per_block;
    for (std::size_t group = 0; group < config_.kv.windows.size(); ++group) {
      const Ids blocks = blocks_of(step, s, group);
      for (std::size_t b = (sequence.end - sequence.num_tokens) / size; b * size < sequence.end; ++b) f(blocks.at(b));
    }
  }

  std::size_t first_visible(std::size_t group, std::size_t p) const {
    const auto window = static_cast<std::size_t>(config_.kv.windows[group]);
    return window == 0 || p < window ? 0 : p - window + 1;
  }

  std::uint64_t& position(const ScheduledStep& step, std::size_t s, std::size_t group, std::size_t p) {
    const std::size_t size = config_.kv.tokens_per_block;
    const std::int32_t block = blocks_of(step, s, group).at(p / size);
    CHECK(block >= 0);
    return memory_.at(static_cast<std::size_t>(block) * size + p % size);
  }

  void collect(bool fails) {
    if (in_flight_.empty()) return;
    const ScheduledStep step = std::move(in_flight_.front());
    in_flight_.pop_front();
    write(step, fails);
    if (fails) return world_.fail(step);
    read(step);
    std::vector<SampledToken> sampled;
    for (const ScheduledSequence& sequence : step.sequences) {
      if (!sequence.wants_logits) continue;
      const Story& story = stories_.at(sequence.request->group->id);
      // A request that ran ahead of its own end wants a token that its story does not have.
      const bool is_known = sequence.end < story.tokens.size();
      CHECK(is_known || sequence.is_stale());
      sampled.push_back({.token_id = is_known ? story.tokens[sequence.end] : 0});
    }
    world_.scheduler.update(step, sampled, world_.emit);
    world_.scheduler.check_integrity();
  }

  void write(const ScheduledStep& step, bool fails) {
    for (std::size_t s = 0; s < step.sequences.size(); ++s) {
      const ScheduledSequence& sequence = step.sequences[s];
      const Story& story = stories_.at(sequence.request->group->id);
      for (std::size_t i = 0; i < sequence.num_tokens; ++i) {
        const std::size_t p = sequence.end - sequence.num_tokens + i;
        const auto row = static_cast<std::size_t>(step.batch.query_starts[s]) + i;
        const bool is_known = p < story.tokens.size();
        CHECK(is_known || sequence.is_stale());
        // A token that is still being chosen is the one that the story has there.
        const std::int32_t token = step.batch.token_ids[row];
        if (token >= 0 && is_known) CHECK_EQ(token, story.tokens[p]);
        if (token < 0 && !sequence.is_stale()) check_source(step, row, sequence, p);
        const std::uint64_t content = fails || !is_known ? nothing : story.prefixes[p];
        for (std::size_t group = 0; group < config_.kv.windows.size(); ++group) position(step, s, group, p) = content;
      }
    }
  }

  /// The source of a token names the step and the row that wanted it.
  void check_source(const ScheduledStep& step, std::size_t row, const ScheduledSequence& sequence, std::size_t p) {
    const auto source = std::ranges::find(step.batch.token_sources, static_cast<std::int32_t>(row), &TokenSource::row);
    CHECK(source != step.batch.token_sources.end());
    const Wanted& wanted = wanted_.at({source->source_step, source->source_row});
    CHECK(wanted.request == sequence.request.get());
    CHECK_EQ(wanted.position, p);
  }

  void read(const ScheduledStep& step) {
    std::int32_t logit_row = 0;
    for (std::size_t s = 0; s < step.sequences.size(); ++s) {
      const ScheduledSequence& sequence = step.sequences[s];
      if (sequence.wants_logits) wanted_[{step.batch.id, logit_row++}] = {sequence.request.get(), sequence.end};
      if (sequence.is_stale()) continue;
      const Story& story = stories_.at(sequence.request->group->id);
      for (std::size_t p = sequence.end - sequence.num_tokens; p < sequence.end; ++p) {
        for (std::size_t group = 0; group < config_.kv.windows.size(); ++group) {
          for (std::size_t q = first_visible(group, p); q <= p; ++q) CHECK_EQ(position(step, s, group, q), story.prefixes[q]);
        }
      }
    }
  }

  void check_ends() {
    std::map<std::pair<std::uint64_t, std::uint32_t>, Ids> tokens;
    std::map<std::pair<std::uint64_t, std::uint32_t>, FinishReason> ends;
    std::map<std::uint64_t, int> num_last;
    for (const Event& event : world_.events) {
      const std::pair sequence{event.request_id, event.sequence};
      CHECK(!ends.contains(sequence));
      if (event.finish_reason == FinishReason::none) tokens[sequence].push_back(event.token_id);
      else ends[sequence] = event.finish_reason;
      num_last[event.request_id] += event.is_last ? 1 : 0;
    }
    CHECK_EQ(ends.size(), num_sequences_);
    for (const auto& [sequence, reason] : ends) {
      const Story& story = stories_.at(sequence.first);
      const Ids expected = story.output();
      const Ids& given = tokens[sequence];
      if (reason == FinishReason::length || reason == FinishReason::stop) {
        CHECK(given == expected);
        CHECK_EQ(reason == FinishReason::stop, story.stops);
      } else {
        CHECK(given.size() <= expected.size() && std::equal(given.begin(), given.end(), expected.begin()));
      }
      CHECK_EQ(num_last[sequence.first], 1);
    }
    CHECK_EQ(world_.num_free(), config_.kv.num_blocks);
    CHECK(!world_.scheduler.kv().has_retiring());
  }

  struct Wanted {
    const Request* request = nullptr;
    std::size_t position = 0;
  };

  static constexpr std::size_t max_length = 24;

  std::mt19937_64 random_;
  SchedulerConfig config_;
  SchedulerWorld world_;
  std::vector<std::uint64_t> memory_;
  std::deque<ScheduledStep> in_flight_;
  std::map<std::pair<std::uint64_t, std::int32_t>, Wanted> wanted_;
  std::map<std::uint64_t, Story> stories_;
  std::uint32_t num_added_ = 0;
  std::size_t num_sequences_ = 0;
  std::int64_t now_ns_ = 1;
};

std::optional<std::string> failure(std::uint64_t seed, std::size_t num_actions) {
  History history(seed);
  try {
    history.run(num_actions);
  } catch (const std::exception& error) {
    return std::string(error.what()) + "\n  " + history.describe();
  }
  return std::nullopt;
}

}  // namespace

TEST("whole histories: every row sees its own tokens, every request gives what it must, every block returns") {
  constexpr std::size_t num_actions = 150;
  for (std::uint64_t seed = 1; seed <= 150; ++seed) {
    std::optional<std::string> found = failure(seed, num_actions);
    if (!found) continue;
    std::size_t fewest = num_actions;
    for (std::size_t fewer = 1; fewer < fewest; ++fewer) {
      if (const auto shorter = failure(seed, fewer)) {
        fewest = fewer;
        found = shorter;
      }
    }
    test::fail(__FILE__, __LINE__, concat("seed ", seed, ", ", fewest, " actions: ", *found));
  }
}
