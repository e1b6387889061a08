#include "runtime/native/src/block_key.h"

#include <cstdint>
#include <cstring>
#include <set>
#include <string>
#include <vector>

#include "runtime/native/src/siphash.h"
#include "tests/native/check.h"

using namespace precast;

namespace {

using Ids = std::vector<std::int32_t>;

/// SipHash-2-4-128 of the bytes 0, 1, ... (`size` of them) under the key 00 01 .. 0f, as hexadecimal bytes.
std::string sip128_of_counting_bytes(std::size_t size) {
  SipHash state(0x0706050403020100u, 0x0f0e0d0c0b0a0908u);
  std::vector<unsigned char> padded(size / 8 * 8 + 8);  // the last byte is the length's
  for (std::size_t i = 0; i < size; ++i) padded[i] = static_cast<unsigned char>(i);
  padded.back() = static_cast<unsigned char>(size);
  for (std::size_t at = 0; at < padded.size(); at += 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, padded.data() + at, 8);
    state.add(word);
  }
  const auto [first, last] = state.finish();
  std::string text;
  for (const std::uint64_t half : {first, last}) {
    for (int byte = 0; byte < 8; ++byte) {
      const auto value = static_cast<unsigned>((half >> (8 * byte)) & 0xFF);
      text.push_back("0123456789abcdef"[value / 16]);
      text.push_back("0123456789abcdef"[value % 16]);
    }
  }
  return text;
}

}  // namespace

TEST("SipHash-2-4-128 gives the vectors of its authors") {
  CHECK_EQ(sip128_of_counting_bytes(0), "a3817f04ba25a8e66df67214c7550293");
  CHECK_EQ(sip128_of_counting_bytes(1), "da87c1d86b99af44347659119b22fc45");
  CHECK_EQ(sip128_of_counting_bytes(7), "a1f1ebbed8dbc153c0b84aa61ff08239");
  CHECK_EQ(sip128_of_counting_bytes(8), "3b62a9ba6258f5610f83e264f31497b4");
  CHECK_EQ(sip128_of_counting_bytes(15), "5493e99933b0a8117e08ec0f97cfc3d9");
  CHECK_EQ(sip128_of_counting_bytes(63), "5150d1772f50834a503e069a973fbd7c");
}

TEST("block keys are SipHash over kind, parent, contents and length, as an implementation in Python has them") {
  const BlockHasher hasher({1, 2});
  const BlockKey root = hasher.root("salt");
  CHECK_EQ(to_hex(root), "08581db8ba2fa1a7d642e7d3de250dba");
  CHECK_EQ(to_hex(hasher.child(root, Ids{1, 2, 3})), "5ef9c1a87c0be7bdf83a4304eeaca080");
}

TEST("block keys tell secrets, salts, parents, tokens, lengths and kinds apart") {
  const BlockHasher hasher({1, 2});
  const BlockKey root = hasher.root("");
  const Ids as_tokens{0x64636261, 0x68676665};  // the bytes of "abcdefgh"
  const std::vector<BlockKey> keys{
      root,
      hasher.root(std::string_view("\0", 1)),
      hasher.root("abcdefgh"),
      hasher.child(root, as_tokens),
      hasher.child(BlockKey{}, as_tokens),
      hasher.child(BlockKey{}, {}),
      hasher.child(root, Ids{1}),
      hasher.child(root, Ids{1, 0}),
      hasher.child(root, Ids{1, 0, 0}),
      hasher.child(root, Ids{0, 1}),
      hasher.child(hasher.child(root, Ids{1}), Ids{0}),
      hasher.child(hasher.root("abcdefgh"), Ids{1}),
      BlockHasher({2, 1}).root(""),
      BlockHasher({2, 1}).child(root, Ids{1}),
  };
  CHECK_EQ(std::set(keys.begin(), keys.end()).size(), keys.size());
  CHECK(hasher.child(root, Ids{1, 2}) == BlockHasher({1, 2}).child(root, Ids{1, 2}));
}

TEST("the operating system's secrets differ") { CHECK(BlockHasher::random_secret() != BlockHasher::random_secret()); }
