// SPDX-License-Identifier: Apache-2.0
#include "plugins/collectives/cpu/meeting.h"

namespace precast {
namespace {

std::string describe(std::uint64_t meeting) {
  const bool is_sum = meeting >> 56 == static_cast<std::uint64_t>(Meeting::all_reduce);
  const std::uint64_t size = meeting & ((std::uint64_t{1} << 56) - 1);
  return std::string(is_sum ? "AllReduce" : "AllGather") + " of " + std::to_string(size) + " numbers";
}

}  // namespace

std::string describe_difference(std::size_t a, std::uint64_t meeting_a, std::size_t b, std::uint64_t meeting_b) {
  return "rank " + std::to_string(a) + " comes to an " + describe(meeting_a) + ", and rank " + std::to_string(b) +
         " to an " + describe(meeting_b) + ": they compute different steps";
}

}  // namespace precast
