#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "runtime/native/src/engine.h"
#include "runtime/native/src/session.h"

namespace precast {

/// The forward pass alone: logits of every position of one sequence, for verification. No batching, no sampling, no thread.
class Model {
 public:
  /// Sequences are computed in chunks of `max_num_tokens`. The session's pool holds a sequence of limits.max_seq_len tokens,
  /// in blocks of `tokens_per_block`, as plan_kv_pool() counts them. `windows` are those of the KV groups, 0: none.
  Model(std::unique_ptr<Session> session, EngineLimits limits, std::size_t max_num_tokens, std::size_t tokens_per_block,
        std::vector<std::int64_t> windows);

  /// Writes logits [token_ids.size(), vocab_size] row-major. Throws Error(invalid_argument) for an empty sequence, one
  /// longer than max_seq_len, an id outside the vocabulary, or `logits` of another size.
  void compute_logits(std::span<const std::int32_t> token_ids, std::span<float> logits);

  const EngineLimits& limits() const noexcept { return limits_; }

 private:
  /// What positions 0 .. end - 1 need for rows from `start` on, one table for each KV group.
  std::vector<BlockTable> block_tables(std::size_t start, std::size_t end) const;

  const EngineLimits limits_;
  const std::size_t max_num_tokens_;
  const std::size_t tokens_per_block_;
  const std::vector<std::int64_t> windows_;
  std::unique_ptr<Session> session_;
  std::uint64_t last_step_ = 0;
};

}  // namespace precast
