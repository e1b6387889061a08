// SPDX-License-Identifier: Apache-2.0
#include "plugins/cpu/registry.h"

namespace precast {
namespace {

constexpr std::string_view ops[] = {
    "ai.precast.AllGather/1", "ai.precast.AllReduce/1",      "ai.precast.Embedding/1",
    "ai.precast.GatedActivation/1", "ai.precast.Linear/1",   "ai.precast.PagedAttention/1",
    "ai.precast.Receive/1",   "ai.precast.RmsNorm/1",        "ai.precast.Send/1",
};

constexpr std::string_view layouts[] = {"kv16.bf16/1", "kv16.f32/1", "x16k1.f32/1", "x16k2.bf16/1"};

}  // namespace

std::span<const std::string_view> supported_ops() noexcept { return ops; }

std::span<const std::string_view> supported_layouts() noexcept { return layouts; }

}  // namespace precast
