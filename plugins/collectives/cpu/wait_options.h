// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstddef>
#include <string>

namespace precast {

struct WaitOptions {
  // How long a rank may show no sign of life while another waits for it. Any node that a rank computes is one: a prompt may
  // take as long as it takes. RankWatch says which of several ranks that wait for each other is named.
  std::chrono::milliseconds rank_timeout{60'000};
  // How often to look before sleeping, about 40 ns each. 0 where ranks share processors.
  unsigned spins = 2'000;
  // Of who waits, in reasons. "": "rank N".
  std::string waiter{};
};

// Why ranks fail when `rank` has made no progress for rank_timeout while `waiting` waited for it `what`: "to send".
std::string describe_stuck(std::size_t rank, const WaitOptions& options, std::size_t waiting, const char* what);

}  // namespace precast
