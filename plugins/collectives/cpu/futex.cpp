// SPDX-License-Identifier: Apache-2.0
#include "plugins/collectives/cpu/futex.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <climits>
#include <ctime>

namespace precast {
namespace {

static_assert(sizeof(std::atomic<std::uint32_t>) == sizeof(std::uint32_t));
static_assert(std::atomic<std::uint32_t>::is_always_lock_free);

// Not FUTEX_PRIVATE_FLAG: the word is mapped by several processes. Its errors say that the word has changed, that time is
// up or that a signal came, which the caller finds out by looking.
void futex(const std::atomic<std::uint32_t>& word, int operation, std::uint32_t value, const timespec* limit) noexcept {
  ::syscall(SYS_futex, &word, operation, value, limit, nullptr, 0);
}

}  // namespace

void futex_wait(const std::atomic<std::uint32_t>& word, std::uint32_t expected, std::chrono::milliseconds limit) noexcept {
  const timespec time{.tv_sec = static_cast<std::time_t>(limit.count() / 1000),
                      .tv_nsec = static_cast<long>(limit.count() % 1000 * 1'000'000)};
  futex(word, FUTEX_WAIT, expected, &time);
}

void futex_wake_all(const std::atomic<std::uint32_t>& word) noexcept { futex(word, FUTEX_WAKE, INT_MAX, nullptr); }

}  // namespace precast
