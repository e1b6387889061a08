#pragma once

#include <cstdint>

namespace precast {

/// Bytes of memory that this process could still occupy without anything being swapped out: what the kernel calls
/// MemAvailable, or what the memory limit of this control group (version 2) leaves, whichever is less.
std::uint64_t available_memory_bytes();

}  // namespace precast
