// SPDX-License-Identifier: Apache-2.0
// Sleeping on a word of memory that processes share (Linux's futex).
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

namespace precast {

// Sleeps until somebody wakes the word, for at most `limit`; returns at once where the word is not `expected` any more.
// May return for no reason.
void futex_wait(const std::atomic<std::uint32_t>& word, std::uint32_t expected, std::chrono::milliseconds limit) noexcept;

// Wakes everybody who sleeps on the word, in every process.
void futex_wake_all(const std::atomic<std::uint32_t>& word) noexcept;

}  // namespace precast
