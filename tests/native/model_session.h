// A session that computes nothing and remembers everything: each position of each KV block knows which tokens, from the start
// of their sequence, were written there. Whoever reads another sequence's keys and values, or some that were overwritten or
// never computed, is found at once, and the next token is a pure function of all tokens before it, as a model's is.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "runtime/native/src/concat.h"
#include "runtime/native/src/scheduler.h"
#include "tests/native/check.h"

namespace precast::test {

inline std::uint64_t mix(std::uint64_t value) {
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
  return value ^ (value >> 31);
}

/// What a sequence is when it runs alone.
struct Truth {
  std::vector<std::int32_t> token_ids;    ///< prompt and output to max_length, beyond stop tokens too
  std::vector<std::uint64_t> histories;   ///< [position] names the tokens up to here and the salt; never 0

  Truth(std::vector<std::int32_t> prompt, std::size_t max_length, std::uint64_t salt, std::uint64_t seed,
        std::int32_t vocab_size)
      : token_ids(std::move(prompt)) {
    std::uint64_t history = mix(salt + 1);
    for (std::size_t position = 0; position < max_length; ++position) {
      if (position == token_ids.size()) {
        const std::uint64_t draw = mix(history + seed);
        token_ids.push_back(static_cast<std::int32_t>(draw % static_cast<std::uint64_t>(vocab_size)));
      }
      history = mix(history * 31 + static_cast<std::uint64_t>(token_ids[position]) + 7) | 1;
      histories.push_back(history);
    }
  }
};

/// Runs steps in order, each when it is collected; a failed one leaves garbage wherever it would have written.
class ModelSession {
 public:
  using Truths = std::map<const Request*, Truth>;

  ModelSession(const SchedulerConfig& config, const Truths& truths)
      : config_(config),
        truths_(truths),
        memory_(static_cast<std::size_t>(config.kv.num_blocks), std::vector<std::uint64_t>(config.kv.tokens_per_block)) {}

  std::size_t num_in_flight() const { return in_flight_.size(); }
  const ScheduledStep& oldest() const { return *in_flight_.front(); }

  /// Checks what can be checked of a description, against the steps in flight too. `others`: every unfinished request.
  void enqueue(std::unique_ptr<ScheduledStep> step, const std::vector<std::shared_ptr<Request>>& others) {
    check_description(*step);
    check_writers(*step, others);
    in_flight_.push_back(std::move(step));
  }

  struct Collected {
    std::unique_ptr<ScheduledStep> step;
    std::vector<SampledToken> sampled;
  };

  /// All writes, then all reads.
  Collected collect() {
    Collected result{std::move(in_flight_.front()), {}};
    in_flight_.pop_front();
    const ScheduledStep& step = *result.step;
    for (std::size_t s = 0; s < step.sequences.size(); ++s) write(step, s, false);
    for (std::size_t s = 0; s < step.sequences.size(); ++s) {
      const ScheduledSequence& sequence = step.sequences[s];
      const bool finds_all = reads_well(step, s);
      if (!finds_all && !sequence.is_stale()) {
        fail(__FILE__, __LINE__, concat("step ", step.batch.id, ": request ", sequence.request->group->id,
                                        " reads keys and values that are not its own"));
      }
      if (!finds_all) write(step, s, true);
      if (!sequence.wants_logits) continue;
      const Truth& truth = truths_.at(sequence.request.get());
      result.sampled.push_back({.token_id = sequence.end < truth.token_ids.size() ? truth.token_ids[sequence.end] : 0});
    }
    return result;
  }

  std::unique_ptr<ScheduledStep> collect_failed() {
    std::unique_ptr<ScheduledStep> step = std::move(in_flight_.front());
    in_flight_.pop_front();
    for (std::size_t s = 0; s < step->sequences.size(); ++s) write(*step, s, true);
    return step;
  }

 private:
  std::int32_t block_at(const ScheduledStep& step, std::size_t s, std::size_t group, std::size_t position) const {
    const BlockTable& table = step.batch.block_tables[group];
    const std::size_t index = position / config_.kv.tokens_per_block;
    CHECK(index < static_cast<std::size_t>(table.width));
    const std::int32_t block = table.blocks[s * static_cast<std::size_t>(table.width) + index];
    CHECK(block >= 0 && block < config_.kv.num_blocks);
    return block;
  }

  std::size_t first_seen(std::size_t group, std::size_t position) const {
    const auto window = static_cast<std::size_t>(config_.kv.windows[group]);
    return window == 0 || position + 1 < window ? 0 : position + 1 - window;
  }

  void write(const ScheduledStep& step, std::size_t s, bool garbage) {
    const ScheduledSequence& sequence = step.sequences[s];
    const Truth& truth = truths_.at(sequence.request.get());
    for (std::size_t position = sequence.end - sequence.num_tokens; position < sequence.end; ++position) {
      for (std::size_t group = 0; group < config_.kv.windows.size(); ++group) {
        auto& block = memory_[static_cast<std::size_t>(block_at(step, s, group, position))];
        block[position % config_.kv.tokens_per_block] = garbage ? 0 : truth.histories[position];
      }
    }
  }

  bool reads_well(const ScheduledStep& step, std::size_t s) const {
    const ScheduledSequence& sequence = step.sequences[s];
    const Truth& truth = truths_.at(sequence.request.get());
    for (std::size_t group = 0; group < config_.kv.windows.size(); ++group) {
      for (std::size_t seen = first_seen(group, sequence.end - sequence.num_tokens); seen < sequence.end; ++seen) {
        const auto& block = memory_[static_cast<std::size_t>(block_at(step, s, group, seen))];
        if (block[seen % config_.kv.tokens_per_block] != truth.histories[seen]) return false;
      }
    }
    return true;
  }

  /// Rows, lengths and tokens say what they should; tokens that are not known come from the row that will choose them.
  void check_description(const ScheduledStep& step) const {
    const StepBatch& batch = step.batch;
    CHECK(batch.num_tokens() >= 1 && batch.num_tokens() <= config_.max_num_tokens);
    CHECK(batch.num_sequences() <= config_.max_batch_size);
    CHECK_EQ(batch.num_sequences(), step.sequences.size());
    CHECK_EQ(batch.needs_logits.size(), batch.logit_rows.size());
    CHECK_EQ(batch.num_candidates.size(), batch.logit_rows.size());
    std::size_t row = 0;
    std::size_t source = 0;
    std::size_t logit_row = 0;
    for (std::size_t s = 0; s < step.sequences.size(); ++s) {
      const ScheduledSequence& sequence = step.sequences[s];
      const Truth& truth = truths_.at(sequence.request.get());
      CHECK_EQ(batch.query_starts[s], static_cast<std::int32_t>(row));
      CHECK_EQ(batch.context_lengths[s], static_cast<std::int32_t>(sequence.end));
      for (std::size_t position = sequence.end - sequence.num_tokens; position < sequence.end; ++position, ++row) {
        if (batch.token_ids[row] >= 0) {
          CHECK_EQ(batch.token_ids[row], truth.token_ids[position]);
          continue;
        }
        const TokenSource& from = batch.token_sources.at(source++);
        CHECK_EQ(from.row, static_cast<std::int32_t>(row));
        check_source(from, *sequence.request, position);
      }
      if (!sequence.wants_logits) continue;
      CHECK_EQ(batch.logit_rows.at(logit_row), static_cast<std::int32_t>(row) - 1);
      check_needs(batch, logit_row++, sequence.request->sampling);
    }
    CHECK_EQ(source, batch.token_sources.size());
    CHECK_EQ(logit_row, batch.logit_rows.size());
    CHECK_EQ(batch.query_starts.back(), static_cast<std::int32_t>(row));
  }

  /// One of three, and one that this session can give and the request can do with.
  void check_needs(const StepBatch& batch, std::size_t logit_row, const SamplingParams& sampling) const {
    const auto num_candidates = static_cast<std::size_t>(batch.num_candidates.at(logit_row));
    if (batch.needs_logits.at(logit_row) != 0) {
      CHECK_EQ(num_candidates, 0U);
    } else if (num_candidates == 0) {
      CHECK(config_.session_chooses_tokens && is_greedy(sampling) && sampling.num_logprobs < 0);
    } else {
      CHECK(num_candidates <= config_.max_candidates);
      CHECK_EQ(batch.num_candidates.at(logit_row), num_candidates_needed(sampling));
    }
  }

  void check_source(const TokenSource& source, const Request& request, std::size_t position) const {
    CHECK(config_.session_chooses_tokens);
    for (const auto& step : in_flight_) {
      if (step->batch.id != source.source_step) continue;
      const std::int32_t row = step->batch.logit_rows.at(static_cast<std::size_t>(source.source_row));
      CHECK_EQ(step->batch.needs_logits.at(static_cast<std::size_t>(source.source_row)), 0);
      CHECK(is_greedy(request.sampling));
      std::size_t s = 0;
      while (step->batch.query_starts[s + 1] <= row) ++s;
      CHECK(step->sequences[s].request.get() == &request);
      CHECK(!step->sequences[s].is_stale());
      CHECK_EQ(step->sequences[s].end, position);
      return;
    }
    fail(__FILE__, __LINE__, concat("a token comes from step ", source.source_step, ", which is not in flight"));
  }

  /// A block that is written has one writer, and nobody else sees it unless it is full when this step is done.
  void check_writers(const ScheduledStep& step, const std::vector<std::shared_ptr<Request>>& others) const {
    std::set<std::pair<std::int32_t, std::size_t>> written;
    for (std::size_t s = 0; s < step.sequences.size(); ++s) {
      const ScheduledSequence& sequence = step.sequences[s];
      for (std::size_t group = 0; group < config_.kv.windows.size(); ++group) {
        for (std::size_t position = sequence.end - sequence.num_tokens; position < sequence.end; ++position) {
          const std::int32_t block = block_at(step, s, group, position);
          CHECK(written.insert({block, position % config_.kv.tokens_per_block}).second);
          check_in_flight(sequence, block);
          const std::size_t index = position / config_.kv.tokens_per_block;
          if ((index + 1) * config_.kv.tokens_per_block > sequence.end) check_alone(sequence, others, block);
        }
      }
    }
  }

  /// Blocks return only after the last step that sees them was collected.
  void check_in_flight(const ScheduledSequence& writer, std::int32_t block) const {
    for (const auto& step : in_flight_) {
      for (std::size_t s = 0; s < step->sequences.size(); ++s) {
        const ScheduledSequence& other = step->sequences[s];
        if (other.request == writer.request && other.epoch == writer.epoch) continue;
        for (std::size_t group = 0; group < config_.kv.windows.size(); ++group) {
          for (std::size_t seen = first_seen(group, other.end - other.num_tokens); seen < other.end; ++seen) {
            if (block_at(*step, s, group, seen) != block) continue;
            fail(__FILE__, __LINE__, concat("block ", block, " is given to request ", writer.request->group->id,
                                            " while step ", step->batch.id, " sees it for another"));
          }
        }
      }
    }
  }

  static void check_alone(const ScheduledSequence& writer, const std::vector<std::shared_ptr<Request>>& others,
                          std::int32_t block) {
    for (const auto& other : others) {
      if (other == writer.request) continue;
      for (const auto& table : other->kv.tables) {
        for (const std::int32_t theirs : table) CHECK(theirs != block);
      }
    }
  }

  const SchedulerConfig config_;
  const Truths& truths_;
  std::vector<std::vector<std::uint64_t>> memory_;  // [block][position within it]
  std::deque<std::unique_ptr<ScheduledStep>> in_flight_;
};

}  // namespace precast::test
