#include "runtime/native/src/block_key.h"

#include <sys/random.h>

#include <cerrno>
#include <cstring>

#include "runtime/native/src/concat.h"
#include "runtime/native/src/error.h"
#include "runtime/native/src/siphash.h"

namespace precast {
namespace {

// What kind of thing is hashed: a salt is never mistaken for tokens.
constexpr std::uint64_t salt_domain = 1;
constexpr std::uint64_t tokens_domain = 2;

}  // namespace

std::string to_hex(const BlockKey& key) {
  constexpr std::string_view digits = "0123456789abcdef";
  std::string text;
  for (const std::uint64_t half : {key.high, key.low}) {
    for (int shift = 60; shift >= 0; shift -= 4) text.push_back(digits[(half >> shift) & 0xF]);
  }
  return text;
}

BlockHasher::Secret BlockHasher::random_secret() {
  Secret secret{};
  if (::getrandom(secret.data(), sizeof secret, 0) != static_cast<ssize_t>(sizeof secret)) {
    throw Error(ErrorCode::io, concat("the operating system gave no random bytes: ", std::strerror(errno)));
  }
  return secret;
}

BlockKey BlockHasher::root(std::string_view salt) const { return hash(salt_domain, {}, salt.data(), salt.size()); }

BlockKey BlockHasher::child(const BlockKey& parent, std::span<const std::int32_t> token_ids) const {
  return hash(tokens_domain, parent, token_ids.data(), token_ids.size_bytes());
}

BlockKey BlockHasher::hash(std::uint64_t domain, const BlockKey& parent, const void* data, std::size_t size) const {
  SipHash state(secret_[0], secret_[1]);
  state.add(domain);
  state.add(parent.high);
  state.add(parent.low);
  const auto* bytes = static_cast<const unsigned char*>(data);
  std::size_t at = 0;
  for (; at + 8 <= size; at += 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, bytes + at, 8);
    state.add(word);
  }
  // SipHash ends with the last bytes and the length's low byte in one word; here the whole length follows in another.
  std::uint64_t last = 0;
  if (at < size) std::memcpy(&last, bytes + at, size - at);
  state.add(last);
  state.add(size);
  const auto [low, high] = state.finish();
  return {high, low};
}

}  // namespace precast
