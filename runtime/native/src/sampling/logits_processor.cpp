#include "runtime/native/src/sampling/logits_processor.h"

#include <algorithm>
#include <limits>

#include "runtime/native/src/concat.h"

namespace precast {

void apply_token_bit_mask(std::span<const std::uint32_t> allowed, std::span<float> logits) {
  constexpr std::size_t bits_per_word = 32;
  constexpr float masked = -std::numeric_limits<float>::infinity();
  if (allowed.size() != (logits.size() + bits_per_word - 1) / bits_per_word) {
    throw Error(ErrorCode::invalid_argument,
                concat("a token bit mask of ", allowed.size(), " words of 32 bits does not fit ", logits.size(),
                       " tokens; give ", (logits.size() + bits_per_word - 1) / bits_per_word));
  }
  for (std::size_t w = 0; w < allowed.size(); ++w) {
    const std::uint32_t bits = allowed[w];
    if (bits == ~std::uint32_t{0}) continue;
    float* const first = logits.data() + w * bits_per_word;
    const std::size_t count = std::min(bits_per_word, logits.size() - w * bits_per_word);
    for (std::size_t b = 0; b < count; ++b) first[b] = (bits >> b & 1U) != 0 ? first[b] : masked;
  }
}

}  // namespace precast
