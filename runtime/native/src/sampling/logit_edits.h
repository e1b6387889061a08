#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "runtime/native/src/sampling/logits_processor.h"

namespace precast {

/// What a request changes in its logits; sampler.h has the rules. Scratch memory only.
class LogitEdits {
 public:
  /// Whether apply_before_processor would change anything.
  static bool is_any_before_processor(const SamplingRow& row);

  /// Allowed ids, bad words, min_tokens and logit bias.
  static void apply_before_processor(const SamplingRow& row, std::span<float> logits);

  /// Whether apply_penalties would change anything.
  static bool is_any_penalty(const SamplingRow& row);

  void apply_penalties(const SamplingRow& row, std::span<float> logits);

 private:
  std::vector<std::uint32_t> counts_;         // of each token id; all zero between calls
  std::vector<std::int32_t> distinct_ids_;
};

}  // namespace precast
