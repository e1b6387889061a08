// Memory that runs out when a test says so, for one thread: this program has an operator new of its own.
#pragma once

#include <cstddef>

namespace precast::test {

enum class Failing { once, for_good };

/// The calling thread's next `num_left` allocations by new succeed, the one behind them fails with std::bad_alloc, and those
/// behind that one too if it is for good.
void fail_allocations(std::size_t num_left, Failing failing) noexcept;

/// From now on the calling thread's allocations succeed. Returns whether one has failed since fail_allocations.
bool stop_failing() noexcept;

}  // namespace precast::test
