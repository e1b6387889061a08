#include "runtime/native/src/sampling/candidates.h"

#include <algorithm>
#include <limits>

namespace precast {
namespace {

constexpr float nothing = -std::numeric_limits<float>::infinity();

}  // namespace

std::int32_t num_candidates_needed(const SamplingParams& params) noexcept {
  if (is_greedy(params)) return std::max(1, params.num_logprobs);
  return params.top_k == 0 ? 0 : std::max(params.top_k, params.num_logprobs);
}

CandidateRow::CandidateRow(const Candidates& candidates, CandidateMemory& memory)
    : candidates_(candidates), memory_(memory) {
  memory.logits.resize(candidates.vocab_size, nothing);
  memory.block_max.resize(num_row_blocks(candidates.vocab_size), nothing);
  const auto put = [&memory](std::int32_t id, float logit) {
    const auto place = static_cast<std::size_t>(id);
    memory.logits[place] = logit;
    float& block_max = memory.block_max[place / tokens_per_row_block];
    block_max = std::max(block_max, logit);
  };
  for (std::size_t i = 0; i < candidates.ids.size(); ++i) put(candidates.ids[i], candidates.logits[i]);
  if (candidates.chosen >= 0) put(candidates.chosen, candidates.logits.front());
}

CandidateRow::~CandidateRow() {
  const auto remove = [this](std::int32_t id) {
    const auto place = static_cast<std::size_t>(id);
    memory_.logits[place] = nothing;
    memory_.block_max[place / tokens_per_row_block] = nothing;
  };
  for (const std::int32_t id : candidates_.ids) remove(id);
  if (candidates_.chosen >= 0) remove(candidates_.chosen);
}

Row CandidateRow::row() const noexcept {
  return {.logits = memory_.logits.data(),
          .num_tokens = candidates_.vocab_size,
          .block_max = memory_.block_max.data(),
          .max = candidates_.logits.front(),
          .largest = candidates_.logits.data(),
          .num_largest = candidates_.logits.size()};
}

}  // namespace precast
