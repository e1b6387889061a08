#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <vector>

#include "runtime/native/src/error.h"
#include "runtime/native/src/kv_cache.h"
#include "runtime/native/src/sampling/logits_processor.h"
#include "runtime/native/src/sampling/sampled_token.h"
#include "runtime/native/src/sampling/sampling_params.h"

namespace precast {

enum class FinishReason : std::uint32_t { none = 0, stop = 1, length = 2, cancelled = 3, error = 4, timeout = 5 };

/// What the caller submitted as one: n sequences from one prompt.
struct RequestGroup {
  std::uint64_t id = 0;
  std::size_t num_unfinished = 0;
};

/// A token that a step in flight is choosing: logit row `row` of step `step`.
struct PendingToken {
  std::uint64_t step = 0;
  std::int32_t row = 0;
};

/// One sequence as the scheduler sees it. Written by the engine's thread only.
///
/// One quantity drives scheduling: how many tokens have been scheduled. There is no prefill and no decode; a request whose
/// next token is not known yet simply has none to schedule, unless the session chooses tokens by itself: then the request
/// runs ahead of what is known, and its next step reads the pending token where it will be.
///
///     token_ids   [ prompt ...................... | output ... ] pending ...
///                   0      num_computed <= num_scheduled      token_ids.size()
struct Request {
  std::shared_ptr<RequestGroup> group;
  std::uint32_t sequence = 0;      ///< 0 .. n - 1
  SamplingParams sampling;
  bool use_logits_processor = false;
  float priority = 0.5F;
  std::uint64_t arrival = 0;       ///< ascends with every request that the scheduler is given
  std::int64_t arrival_ns = 0;     ///< CLOCK_MONOTONIC
  std::int64_t deadline_ns = 0;    ///< CLOCK_MONOTONIC; 0: none

  std::vector<std::int32_t> token_ids;  ///< prompt and the output so far
  std::size_t num_prompt_tokens = 0;
  std::size_t num_scheduled = 0;        ///< tokens in enqueued steps, collected or not, or found in the cache
  std::size_t num_computed = 0;         ///< tokens of collected steps: keys and values are in the pool for certain
  std::deque<PendingToken> pending;     ///< of steps in flight, in order
  std::uint64_t last_step = 0;          ///< the last step that names its blocks
  KvSequence kv;

  std::uint64_t epoch = 0;              ///< how often it has been started anew; results for an older epoch are not its own
  std::uint32_t num_preemptions = 0;
  std::size_t num_cached_tokens = 0;    ///< prompt tokens found in the cache before its first token
  std::int64_t first_scheduled_ns = 0;  ///< 0: never
  FinishReason finish_reason = FinishReason::none;

  std::size_t num_output_tokens() const noexcept { return token_ids.size() - num_prompt_tokens; }
  std::size_t max_length() const noexcept {
    return num_prompt_tokens + static_cast<std::size_t>(sampling.max_tokens);
  }
  bool finished() const noexcept { return finish_reason != FinishReason::none; }

  /// What its next token is sampled by; of logits and candidates nothing. Valid until a token is added.
  SamplingRow sampling_row() const {
    return {.params = &sampling,
            .token_ids = token_ids,
            .num_prompt_tokens = num_prompt_tokens,
            .sequence = sequence,
            .request_id = group->id,
            .wants_processor = use_logits_processor};
  }
};

/// The more important request first: higher priority, then earlier arrival.
struct MoreImportant {
  bool operator()(const std::shared_ptr<Request>& a, const std::shared_ptr<Request>& b) const noexcept {
    return a->priority != b->priority ? a->priority > b->priority : a->arrival < b->arrival;
  }
};

/// What the engine tells its caller: one token, or the end of a sequence.
struct Event {
  std::uint64_t request_id = 0;
  std::uint32_t sequence = 0;
  FinishReason finish_reason = FinishReason::none;  ///< none: a token
  bool is_last = false;                             ///< of an end: the request's other sequences have ended before
  std::int32_t token_id = -1;                       ///< of a token
  std::vector<TokenLogprob> logprobs{};             ///< of a token, as sampled
  std::int32_t stop_token_id = -1;                  ///< of FinishReason::stop
  std::uint32_t num_prompt_tokens = 0;              ///< of an end, as all that follow but the time
  std::uint32_t num_output_tokens = 0;
  std::uint32_t num_cached_tokens = 0;
  std::uint32_t num_preemptions = 0;
  std::int64_t first_scheduled_ns = 0;
  std::int64_t time_ns = 0;                         ///< CLOCK_MONOTONIC
  std::optional<Error> error{};                     ///< of FinishReason::error
};

}  // namespace precast
