#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace precast {

/// CRC-32 of zlib, PNG and Ethernet: reflected polynomial 0xEDB88320, initial value and final XOR 0xFFFFFFFF.
std::uint32_t crc32(std::span<const std::byte> bytes) noexcept;

}  // namespace precast
