// SPDX-License-Identifier: Apache-2.0
// What this library can compute. An engine's manifest lists the ops and layouts it requires.
#pragma once

#include <span>
#include <string_view>

namespace precast {

// Versioned op ids such as "ai.precast.Linear/1", sorted. The same list as plugins/__init__.py.
std::span<const std::string_view> supported_ops() noexcept;

// Versioned ids of weight layouts and KV layouts such as "x16k2.bf16/1", sorted. The same list as plugins/__init__.py.
std::span<const std::string_view> supported_layouts() noexcept;

}  // namespace precast
