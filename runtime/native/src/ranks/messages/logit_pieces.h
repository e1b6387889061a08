#pragma once

#include <algorithm>
#include <cstddef>

namespace precast {

/// Calls f(first, count) for the pieces in which `num_logits` logits are sent to rank 0: message passing counts bytes in 31
/// bits.
template <typename F>
void for_logit_pieces(std::size_t num_logits, F&& f) {
  constexpr std::size_t piece = std::size_t{1} << 24;
  for (std::size_t first = 0; first < num_logits; first += piece) f(first, std::min(piece, num_logits - first));
}

}  // namespace precast
