#include "runtime/native/src/c_api/candidate_check.h"

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "runtime/native/src/concat.h"

namespace precast {
namespace {

/// NaN stands in no order, so it is found too.
std::optional<std::string> find_ascent(const Candidates& candidates) {
  for (std::size_t i = 1; i < candidates.logits.size(); ++i) {
    if (candidates.logits[i - 1] >= candidates.logits[i]) continue;
    return concat("candidate_logits ", candidates.logits[i], " at ", i, " behind ", candidates.logits[i - 1],
                  "; they must descend");
  }
  return std::nullopt;
}

std::optional<std::string> find_bad_log_sum(const Candidates& candidates) {
  const float largest = candidates.logits.front();
  const float rounding = 1e-5F * std::max(1.0F, std::abs(largest));
  if (candidates.log_sum >= largest - rounding) return std::nullopt;
  return concat("log_sums ", candidates.log_sum, ", below its largest logit ", largest);
}

/// The choice is the smallest id of the largest logit. It may be missing only where all candidates tie with it.
std::optional<std::string> find_bad_choice(const Candidates& candidates) {
  const float largest = candidates.logits.front();
  const auto end = std::ranges::find_if(candidates.logits, [largest](float logit) { return logit != largest; });
  const auto num_largest = static_cast<std::size_t>(end - candidates.logits.begin());
  const std::int32_t first = std::ranges::min(candidates.ids.first(num_largest));
  const bool all_tie = num_largest == candidates.ids.size();
  if (candidates.chosen < 0 || candidates.chosen == first || (all_tie && candidates.chosen < first)) return std::nullopt;
  return concat("token_ids ", candidates.chosen, ", and candidate_ids ", first, " with the largest logit");
}

}  // namespace

std::optional<std::string> CandidateCheck::find_problem(const Candidates& candidates) {
  if (!std::isfinite(candidates.logits.front()) || !std::isfinite(candidates.log_sum)) return std::nullopt;
  std::optional<std::string> problem = find_bad_id(candidates);
  if (!problem) problem = find_ascent(candidates);
  if (!problem) problem = find_bad_log_sum(candidates);
  if (!problem) problem = find_bad_choice(candidates);
  return problem;
}

std::optional<std::string> CandidateCheck::find_bad_id(const Candidates& candidates) {
  std::optional<std::string> problem;
  std::size_t num_good = 0;
  for (const std::int32_t id : candidates.ids) {
    if (id < 0 || static_cast<std::size_t>(id) >= is_seen_.size()) {
      problem = concat("candidate_ids ", id, " at ", num_good, ", outside the vocabulary of ", is_seen_.size());
      break;
    }
    if (is_seen_[static_cast<std::size_t>(id)]) {
      problem = concat("candidate_ids ", id, " at ", num_good, ", where it stands for the second time");
      break;
    }
    is_seen_[static_cast<std::size_t>(id)] = true;
    ++num_good;
  }
  for (const std::int32_t id : candidates.ids.first(num_good)) is_seen_[static_cast<std::size_t>(id)] = false;
  return problem;
}

}  // namespace precast
