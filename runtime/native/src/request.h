#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "runtime/native/src/error.h"
#include "runtime/native/src/sampling/sampling_params.h"

namespace precast {

enum class FinishReason : std::uint32_t { none = 0, stop = 1, length = 2, cancelled = 3, error = 4 };

/// A request as the scheduler sees it. Written by the engine's thread only.
///
/// One quantity drives scheduling: how many tokens have been scheduled. There is no prefill and no decode; a request whose
/// next token is not known yet simply has none to schedule.
///
///     token_ids   [ prompt ...................... | output ... ]
///                   0      num_computed <= num_scheduled      token_ids.size()
struct Request {
  std::uint64_t id = 0;
  SamplingParams sampling;
  std::vector<std::int32_t> token_ids;  ///< prompt and the output so far
  std::size_t num_prompt_tokens = 0;
  std::size_t num_scheduled = 0;         ///< tokens in enqueued steps, collected or not
  std::size_t num_computed = 0;          ///< tokens whose keys and values are in the pool for certain
  std::size_t num_steps_in_flight = 0;   ///< enqueued and not yet collected steps that name this request's blocks
  std::vector<std::int32_t> blocks;      ///< block i holds positions [i * tokens_per_block, (i + 1) * tokens_per_block)
  std::size_t num_reserved_blocks = 0;   ///< what it may need until its end; blocks.size() never exceeds it
  FinishReason finish_reason = FinishReason::none;

  std::size_t num_output_tokens() const noexcept { return token_ids.size() - num_prompt_tokens; }
  bool finished() const noexcept { return finish_reason != FinishReason::none; }
};

/// What the engine tells its caller: one token, or the end of a request.
struct Event {
  std::uint64_t request_id = 0;
  FinishReason finish_reason = FinishReason::none;  ///< none: a token
  std::int32_t token_id = -1;                       ///< of a token
  std::int32_t stop_token_id = -1;                  ///< of FinishReason::stop
  std::uint32_t num_prompt_tokens = 0;              ///< of an end
  std::uint32_t num_output_tokens = 0;              ///< of an end
  std::int64_t time_ns = 0;                         ///< CLOCK_MONOTONIC
  std::optional<Error> error;                       ///< of FinishReason::error
};

}  // namespace precast
