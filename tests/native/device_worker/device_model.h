// The model that precast_device_worker computes: logits that are a pure function of all tokens up to a position. A test that
// knows the tokens knows what must come, and whoever reads another sequence's KV blocks gives something else.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace precast::test {

inline constexpr std::int32_t device_vocab_size = 40;

inline std::uint64_t device_hash(std::uint64_t value) {
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9U;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebU;
  return value ^ (value >> 31);
}

/// The row of logits after these tokens. The largest is well above the others, so that sampled and greedy outputs are of
/// either kind.
inline std::vector<float> device_logits(std::span<const std::int32_t> tokens) {
  std::uint64_t history = 1;
  for (const std::int32_t token : tokens) history = device_hash(history * 31 + static_cast<std::uint64_t>(token) + 7);
  std::vector<float> row(device_vocab_size);
  for (std::size_t id = 0; id < row.size(); ++id) {
    row[id] = static_cast<float>(device_hash(history + id) % 4096) / 1024.0F - 4.0F;
  }
  row[history % row.size()] = 1.0F;
  return row;
}

/// The largest, the smallest id among equals.
inline std::int32_t device_token(const std::vector<float>& row) {
  return static_cast<std::int32_t>(std::ranges::max_element(row) - row.begin());
}

/// What greedy requests give.
inline std::vector<std::int32_t> device_output(std::vector<std::int32_t> tokens, std::size_t count) {
  const std::size_t num_prompt_tokens = tokens.size();
  while (tokens.size() < num_prompt_tokens + count) tokens.push_back(device_token(device_logits(tokens)));
  tokens.erase(tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(num_prompt_tokens));
  return tokens;
}

}  // namespace precast::test
