// SPDX-License-Identifier: Apache-2.0
#include "plugins/collectives/cpu/rank_memory.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <new>
#include <stdexcept>
#include <utility>

#include "plugins/collectives/cpu/futex.h"

namespace precast {
namespace {

constexpr std::uint64_t magic = 0x3130'4b4e'4152'4350;  // "PCRANK01"
constexpr std::uint32_t layout_version = 2;
constexpr std::size_t header_bytes = 4096;
struct Header {
  std::uint64_t magic;
  std::uint32_t layout_version;
  std::uint32_t num_slots;
  std::uint64_t tensor_parallel_size;
  std::uint64_t pipeline_parallel_size;
  std::uint64_t buffer_bytes;
  std::uint64_t slot_bytes;
  alignas(64) std::atomic<std::uint32_t> failed_by;  // an author, plus 1; 0: the ranks have not failed
};
static_assert(sizeof(Header) <= header_bytes);
static_assert(std::atomic<std::uint64_t>::is_always_lock_free);

Header& header(const SharedMemory& memory) noexcept { return *reinterpret_cast<Header*>(memory.data()); }

std::size_t rank_bytes(const RankMemorySizes& sizes) noexcept {
  return sizeof(RankState) + sizeof(ChannelState) + 2 * sizes.buffer_bytes + sizes.num_slots * sizes.slot_bytes;
}

// Of a Reason.
constexpr std::size_t reason_bytes = 1024;

std::size_t reasons_bytes(const RankMemorySizes& sizes) noexcept { return (sizes.world_size() + 1) * reason_bytes; }

std::size_t total_bytes(const RankMemorySizes& sizes) noexcept {
  return header_bytes + reasons_bytes(sizes) + sizes.world_size() * rank_bytes(sizes);
}

void check(const RankMemorySizes& sizes) {
  constexpr std::size_t most = std::size_t{1} << 32;
  const auto is_size = [](std::size_t bytes) { return bytes >= 128 && bytes <= most && bytes % 64 == 0; };
  const bool is_mapping = sizes.tensor_parallel_size >= 1 && sizes.pipeline_parallel_size >= 1 &&
                          sizes.tensor_parallel_size <= 1 << 15 && sizes.pipeline_parallel_size <= 1 << 15;
  if (!is_mapping || !is_size(sizes.buffer_bytes) || !is_size(sizes.slot_bytes) || !std::has_single_bit(sizes.num_slots) ||
      sizes.num_slots > 1 << 16 || rank_bytes(sizes) > std::numeric_limits<std::size_t>::max() / (sizes.world_size() + 1)) {
    throw std::invalid_argument("memory for " + std::to_string(sizes.tensor_parallel_size) + " x " +
                                std::to_string(sizes.pipeline_parallel_size) + " ranks with buffers of " +
                                std::to_string(sizes.buffer_bytes) + " bytes and " + std::to_string(sizes.num_slots) +
                                " slots of " + std::to_string(sizes.slot_bytes) + " cannot be laid out");
  }
}

}  // namespace

void RankState::show_waiting(std::size_t rank) noexcept {
  waits_for.store(static_cast<std::uint32_t>(rank) + 1, std::memory_order_relaxed);
}

void RankState::show_going_on() noexcept {
  heartbeat.fetch_add(1, std::memory_order_relaxed);
  waits_for.store(0, std::memory_order_release);
}

RankSigns RankState::signs() const noexcept {
  const std::uint32_t whom = waits_for.load(std::memory_order_acquire);
  return {.progress = heartbeat.load(std::memory_order_relaxed),
          .pulse = pulse.load(std::memory_order_relaxed),
          .waits_for = whom};
}

std::shared_ptr<RankMemory> RankMemory::create(const RankMemorySizes& sizes) {
  check(sizes);
  std::shared_ptr<SharedMemory> memory = SharedMemory::create(total_bytes(sizes));
  // All else is zeros, which is what counters and flags begin with.
  new (memory->data()) Header{.magic = magic,
                              .layout_version = layout_version,
                              .num_slots = static_cast<std::uint32_t>(sizes.num_slots),
                              .tensor_parallel_size = sizes.tensor_parallel_size,
                              .pipeline_parallel_size = sizes.pipeline_parallel_size,
                              .buffer_bytes = sizes.buffer_bytes,
                              .slot_bytes = sizes.slot_bytes,
                              .failed_by = 0};
  return std::shared_ptr<RankMemory>(new RankMemory(std::move(memory), sizes));
}

std::shared_ptr<RankMemory> RankMemory::open(std::shared_ptr<SharedMemory> memory) {
  if (memory->size_bytes() < header_bytes || header(*memory).magic != magic) {
    throw std::invalid_argument("the shared memory is not one of precast's ranks");
  }
  const Header& found = header(*memory);
  if (found.layout_version != layout_version) {
    throw std::invalid_argument("the shared memory has layout " + std::to_string(found.layout_version) +
                                ", and this precast knows layout " + std::to_string(layout_version) +
                                ": all ranks must run the same version");
  }
  const RankMemorySizes sizes{.tensor_parallel_size = found.tensor_parallel_size,
                              .pipeline_parallel_size = found.pipeline_parallel_size,
                              .buffer_bytes = found.buffer_bytes,
                              .slot_bytes = found.slot_bytes,
                              .num_slots = found.num_slots};
  check(sizes);
  if (memory->size_bytes() != total_bytes(sizes)) {
    throw std::invalid_argument("the shared memory has " + std::to_string(memory->size_bytes()) +
                                " bytes, and its header speaks of " + std::to_string(total_bytes(sizes)));
  }
  return std::shared_ptr<RankMemory>(new RankMemory(std::move(memory), sizes));
}

RankMemory::RankMemory(std::shared_ptr<SharedMemory> memory, const RankMemorySizes& sizes)
    : memory_(std::move(memory)), sizes_(sizes) {}

struct RankMemory::Reason {
  std::uint32_t num_bytes;
  char text[reason_bytes - sizeof(std::uint32_t)];
};

RankMemory::Reason& RankMemory::reason(std::size_t author) const noexcept {
  static_assert(sizeof(Reason) == reason_bytes);
  return reinterpret_cast<Reason*>(memory_->data() + header_bytes)[author];
}

std::byte* RankMemory::rank_data(std::size_t rank) const noexcept {
  return memory_->data() + header_bytes + reasons_bytes(sizes_) + rank * rank_bytes(sizes_);
}

RankState& RankMemory::state(std::size_t rank) const noexcept {
  return *reinterpret_cast<RankState*>(rank_data(rank));
}

ChannelState& RankMemory::channel(std::size_t rank) const noexcept {
  return *reinterpret_cast<ChannelState*>(rank_data(rank) + sizeof(RankState));
}

float* RankMemory::buffer(std::size_t rank, std::size_t turn) const noexcept {
  std::byte* const buffers = rank_data(rank) + sizeof(RankState) + sizeof(ChannelState);
  return reinterpret_cast<float*>(buffers + turn * sizes_.buffer_bytes);
}

SlotHeader& RankMemory::slot(std::size_t rank, std::size_t index) const noexcept {
  std::byte* const slots = rank_data(rank) + sizeof(RankState) + sizeof(ChannelState) + 2 * sizes_.buffer_bytes;
  return *reinterpret_cast<SlotHeader*>(slots + index * sizes_.slot_bytes);
}

float* RankMemory::slot_floats(std::size_t rank, std::size_t index) const noexcept {
  return reinterpret_cast<float*>(reinterpret_cast<std::byte*>(&slot(rank, index)) + 64);
}

void RankMemory::fail(std::size_t author, std::string_view text) const noexcept {
  std::atomic<std::uint32_t>& failed_by = header(*memory_).failed_by;
  if (failed_by.load() != 0) return;
  // Written before anybody is told where: who is killed meanwhile has said nothing.
  Reason& own = reason(author);
  own.num_bytes = static_cast<std::uint32_t>(std::min(text.size(), sizeof own.text));
  std::memcpy(own.text, text.data(), own.num_bytes);
  std::uint32_t nobody = 0;
  if (!failed_by.compare_exchange_strong(nobody, static_cast<std::uint32_t>(author) + 1)) return;
  for (std::size_t rank = 0; rank < sizes_.world_size(); ++rank) {
    futex_wake_all(state(rank).arrived);
    futex_wake_all(channel(rank).sent);
    futex_wake_all(channel(rank).received);
  }
}

bool RankMemory::has_failed() const noexcept {
  return header(*memory_).failed_by.load(std::memory_order_acquire) != 0;
}

std::string RankMemory::failure() const {
  const std::uint32_t author = header(*memory_).failed_by.load(std::memory_order_acquire);
  if (author == 0 || author > sizes_.world_size() + 1) return "the ranks have not failed";
  const Reason& said = reason(author - 1);
  return {said.text, std::min<std::size_t>(said.num_bytes, sizeof said.text)};
}

}  // namespace precast
