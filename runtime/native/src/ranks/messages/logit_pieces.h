#pragma once

#include <algorithm>
#include <cstddef>

namespace precast {

/// Calls f(first, count) for the pieces in which `num_logits` logits are sent to rank 0: message passing counts bytes in 31
/// bits. A step without logits is one empty piece, which says that it is done.
template <typename F>
void for_logit_pieces(std::size_t num_logits, F&& f) {
  constexpr std::size_t piece = std::size_t{1} << 24;
  std::size_t first = 0;
  do {
    const std::size_t count = std::min(piece, num_logits - first);
    f(first, count);
    first += count;
  } while (first < num_logits);
}

}  // namespace precast
