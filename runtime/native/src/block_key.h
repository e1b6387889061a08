#pragma once

#include <array>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>

namespace precast {

/// Names the contents of a full KV block: its tokens, everything before them, and the salt.
struct BlockKey {
  std::uint64_t high = 0;
  std::uint64_t low = 0;

  auto operator<=>(const BlockKey&) const = default;
};

/// 32 hexadecimal digits.
std::string to_hex(const BlockKey& key);

/// Makes block keys: SipHash-2-4 with 128 bits of output (Aumasson and Bernstein, "SipHash: a fast short-input PRF", 2012,
/// https://www.aumasson.jp/siphash/siphash.pdf) over the parent's key and the tokens. The secret makes collisions hard to
/// construct for whoever chooses prompts; tokens are compared on a hit all the same.
class BlockHasher {
 public:
  using Secret = std::array<std::uint64_t, 2>;

  explicit BlockHasher(const Secret& secret) noexcept : secret_(secret) {}

  /// A secret of this process, from the operating system. Throws Error(io).
  static Secret random_secret();

  /// The parent of the first block of every sequence with this salt.
  BlockKey root(std::string_view salt) const;
  BlockKey child(const BlockKey& parent, std::span<const std::int32_t> token_ids) const;

 private:
  BlockKey hash(std::uint64_t domain, const BlockKey& parent, const void* data, std::size_t size) const;

  Secret secret_;
};

}  // namespace precast

template <>
struct std::hash<precast::BlockKey> {
  // Every bit of a key is as good as random already.
  std::size_t operator()(const precast::BlockKey& key) const noexcept { return static_cast<std::size_t>(key.low); }
};
