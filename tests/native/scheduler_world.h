// A scheduler with somewhere for its events, and a session that chooses what it is told and may be late.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <utility>
#include <vector>

#include "runtime/native/src/scheduler.h"
#include "tests/native/check.h"

namespace precast::test {

using Ids = std::vector<std::int32_t>;

struct SchedulerWorld {
  explicit SchedulerWorld(const SchedulerConfig& config) : scheduler(config) {}

  /// A request for one sequence; change it, then give it to add.
  std::shared_ptr<Request> request(std::uint64_t id, Ids prompt, std::int32_t max_tokens, std::string_view salt = {},
                                   std::vector<RetentionRange> retention = {}) {
    auto made = std::make_shared<Request>();
    made->group = std::make_shared<RequestGroup>(RequestGroup{id, 1});
    made->num_prompt_tokens = prompt.size();
    made->token_ids = std::move(prompt);
    made->sampling.max_tokens = max_tokens;
    made->sampling.temperature = 0.0F;
    made->kv = scheduler.kv().open(salt, std::move(retention), false);
    return made;
  }

  std::shared_ptr<Request> add(std::shared_ptr<Request> made) {
    scheduler.add({made});
    return made;
  }

  std::shared_ptr<Request> add(std::uint64_t id, Ids prompt, std::int32_t max_tokens) {
    return add(request(id, std::move(prompt), max_tokens));
  }

  ScheduledStep schedule(std::int64_t now_ns = 1) {
    ScheduledStep step = scheduler.schedule(now_ns);
    scheduler.check_integrity();
    return step;
  }

  void update(const ScheduledStep& step, const Ids& tokens) {
    CHECK_EQ(tokens.size(), step.batch.logit_rows.size());
    std::vector<SampledToken> sampled;
    for (const std::int32_t token : tokens) sampled.push_back({.token_id = token});
    scheduler.update(step, sampled, emit);
    scheduler.check_integrity();
  }

  void fail(const ScheduledStep& step) {
    scheduler.fail(step, Error(ErrorCode::onnxruntime, "a bad day"), emit);
    scheduler.check_integrity();
  }

  /// Steps, one at a time, until nothing is left; every token is `token`.
  void run_to_end(std::int32_t token = 1) {
    while (scheduler.has_unfinished()) {
      const ScheduledStep step = schedule();
      CHECK(!step.sequences.empty());
      update(step, Ids(step.batch.logit_rows.size(), token));
    }
  }

  std::int32_t num_free() const { return scheduler.kv().pool().num_free(); }

  Ids tokens_of(std::uint64_t id) const {
    Ids tokens;
    for (const Event& event : events) {
      if (event.request_id == id && event.finish_reason == FinishReason::none) tokens.push_back(event.token_id);
    }
    return tokens;
  }

  /// How the request ended; none: not yet.
  FinishReason end_of(std::uint64_t id) const {
    FinishReason reason = FinishReason::none;
    for (const Event& event : events) {
      if (event.request_id != id || event.finish_reason == FinishReason::none) continue;
      CHECK(reason == FinishReason::none);
      reason = event.finish_reason;
    }
    return reason;
  }

  std::vector<Event> events;
  Scheduler::Emit emit = [this](Event event) { events.push_back(std::move(event)); };
  Scheduler scheduler;
};

/// first, first + 1, ... (`count` of them).
inline Ids range(std::int32_t first, std::size_t count) {
  Ids ids;
  for (std::size_t i = 0; i < count; ++i) ids.push_back(first + static_cast<std::int32_t>(i));
  return ids;
}

/// The blocks of sequence `s` in KV group `group`, without what is behind the last one.
inline Ids blocks_of(const ScheduledStep& step, std::size_t s, std::size_t group = 0) {
  const BlockTable& table = step.batch.block_tables.at(group);
  const auto begin = table.blocks.begin() + static_cast<std::ptrdiff_t>(s) * table.width;
  Ids blocks(begin, begin + table.width);
  while (!blocks.empty() && blocks.back() < 0) blocks.pop_back();
  return blocks;
}

}  // namespace precast::test
