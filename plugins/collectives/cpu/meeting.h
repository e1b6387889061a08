// SPDX-License-Identifier: Apache-2.0
// What ranks say they do when they meet, so that ranks that compute different steps are noticed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace precast {

enum class Meeting : std::uint64_t { all_reduce = 1, all_gather = 2 };

// Of a message of `size` numbers, in one word.
constexpr std::uint64_t encode_meeting(Meeting kind, std::size_t size) noexcept {
  return static_cast<std::uint64_t>(kind) << 56 | size;
}

// Why ranks fail when rank a comes to meeting `meeting_a` and rank b to another one.
std::string describe_difference(std::size_t a, std::uint64_t meeting_a, std::size_t b, std::uint64_t meeting_b);

}  // namespace precast
