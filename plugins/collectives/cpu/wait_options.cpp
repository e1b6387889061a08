// SPDX-License-Identifier: Apache-2.0
#include "plugins/collectives/cpu/wait_options.h"

namespace precast {

std::string describe_stuck(std::size_t rank, const WaitOptions& options, std::size_t waiting, const char* what) {
  std::string seconds = std::to_string(static_cast<double>(options.rank_timeout.count()) / 1000);
  seconds.erase(seconds.find_last_not_of('0') + 1);
  if (seconds.back() == '.') seconds.pop_back();
  const std::string waiter = options.waiter.empty() ? "rank " + std::to_string(waiting) : options.waiter;
  return "rank " + std::to_string(rank) + " has made no progress for " + seconds + " s, while " + waiter +
         " waited for it " + what;
}

}  // namespace precast
