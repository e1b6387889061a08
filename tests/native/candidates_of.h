// The most likely tokens of a row as a device finds them: by sorting all of it, equals in an order of its own.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <numeric>
#include <span>
#include <vector>

#include "runtime/native/src/sampling/candidates.h"

namespace precast::test {

struct FoundCandidates {
  std::vector<std::int32_t> ids;
  std::vector<float> logits;
  float log_sum = 0.0F;
  std::size_t vocab_size = 0;

  Candidates view(std::int32_t chosen = -1) const {
    return {.ids = ids, .logits = logits, .log_sum = log_sum, .chosen = chosen, .vocab_size = vocab_size};
  }
};

/// `equals_order` says which of two equal logits comes first: it decides which of them are kept.
inline FoundCandidates candidates_of(std::span<const float> row, std::size_t count,
                                     const std::function<bool(std::int32_t, std::int32_t)>& equals_order = std::less<>()) {
  const auto logit = [row](std::int32_t id) { return row[static_cast<std::size_t>(id)]; };
  FoundCandidates found;
  found.vocab_size = row.size();
  found.ids.resize(row.size());
  std::iota(found.ids.begin(), found.ids.end(), 0);
  std::sort(found.ids.begin(), found.ids.end(), [&](std::int32_t a, std::int32_t b) {
    return logit(a) != logit(b) ? logit(a) > logit(b) : equals_order(a, b);
  });
  double sum = 0.0;
  for (const float x : row) sum += std::exp(static_cast<double>(x) - static_cast<double>(logit(found.ids.front())));
  found.log_sum = static_cast<float>(static_cast<double>(logit(found.ids.front())) + std::log(sum));
  found.ids.resize(std::min(count, row.size()));
  for (const std::int32_t id : found.ids) found.logits.push_back(logit(id));
  return found;
}

}  // namespace precast::test
