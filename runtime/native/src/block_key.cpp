#include "runtime/native/src/block_key.h"

#include <sys/random.h>

#include <bit>
#include <cerrno>
#include <cstring>

#include "runtime/native/src/concat.h"
#include "runtime/native/src/error.h"

namespace precast {
namespace {

/// SipHash's state; add takes whole 64-bit words.
class SipHash {
 public:
  explicit SipHash(const BlockHasher::Secret& secret) noexcept
      : v0_(secret[0] ^ 0x736f6d6570736575u),
        v1_(secret[1] ^ 0x646f72616e646f6du ^ 0xEE),  // 0xEE: 128 bits of output
        v2_(secret[0] ^ 0x6c7967656e657261u),
        v3_(secret[1] ^ 0x7465646279746573u) {}

  void add(std::uint64_t word) noexcept {
    v3_ ^= word;
    rounds(2);
    v0_ ^= word;
  }

  BlockKey finish() noexcept {
    v2_ ^= 0xEE;
    rounds(4);
    const std::uint64_t low = v0_ ^ v1_ ^ v2_ ^ v3_;
    v1_ ^= 0xDD;
    rounds(4);
    return {v0_ ^ v1_ ^ v2_ ^ v3_, low};
  }

 private:
  void rounds(int count) noexcept {
    for (int i = 0; i < count; ++i) {
      v0_ += v1_;
      v2_ += v3_;
      v1_ = std::rotl(v1_, 13) ^ v0_;
      v3_ = std::rotl(v3_, 16) ^ v2_;
      v0_ = std::rotl(v0_, 32);
      v2_ += v1_;
      v0_ += v3_;
      v1_ = std::rotl(v1_, 17) ^ v2_;
      v3_ = std::rotl(v3_, 21) ^ v0_;
      v2_ = std::rotl(v2_, 32);
    }
  }

  std::uint64_t v0_, v1_, v2_, v3_;
};

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
  SipHash state(secret_);
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
  return state.finish();
}

}  // namespace precast
