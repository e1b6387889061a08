#include "runtime/native/src/ranks/step_memory.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <stdexcept>
#include <utility>
#include <vector>

#include "plugins/collectives/cpu/futex.h"
#include "runtime/native/src/concat.h"

namespace precast {
namespace {

constexpr std::uint64_t magic = 0x3130'5045'5453'4350;  // "PCSTEP01"
constexpr std::size_t header_bytes = 4096;
constexpr std::size_t page = 4096;

struct Header {
  std::uint64_t magic;
  std::uint64_t build_id;
  StepLimits limits;
  alignas(64) std::atomic<std::uint32_t> published;
  std::atomic<std::uint32_t> published_sleepers;
  std::atomic<std::uint32_t> stopped;
};
static_assert(sizeof(Header) <= header_bytes);

Header& header(const SharedMemory& memory) noexcept { return *reinterpret_cast<Header*>(memory.data()); }

std::size_t round_up(std::size_t bytes) noexcept { return (bytes + page - 1) / page * page; }

/// Counts and all vectors of a step; the numbers before each vector are its length.
std::size_t slot_bytes(const StepLimits& limits) noexcept {
  constexpr std::size_t max_counts = 64 * 1024;  // lengths, and the widths of block tables
  const std::size_t numbers =
      limits.max_tokens + 2 * limits.max_sequences + limits.max_logit_rows + limits.max_table_entries + 1;
  return round_up(numbers * sizeof(std::int32_t) + max_counts);
}

std::size_t logits_bytes(const StepLimits& limits) noexcept {
  return limits.carries_logits ? round_up(limits.max_logit_rows * limits.vocab_size * sizeof(float)) : 0;
}

std::size_t workers_bytes(const StepLimits& limits) noexcept {
  return round_up(limits.world_size * sizeof(StepMemory::Worker));
}

std::size_t total_bytes(const StepLimits& limits) noexcept {
  return header_bytes + workers_bytes(limits) + limits.num_slots * (slot_bytes(limits) + logits_bytes(limits));
}

/// Appends numbers to a slot.
class Writer {
 public:
  Writer(std::byte* data, std::size_t size_bytes) noexcept : data_(data), left_(size_bytes) {}

  void number(std::uint64_t value) { bytes(&value, sizeof value); }
  void vector(const std::vector<std::int32_t>& values) {
    number(values.size());
    bytes(values.data(), values.size() * sizeof(std::int32_t));
    if (values.size() % 2 != 0) bytes("\0\0\0", 4);  // what follows is aligned
  }

 private:
  void bytes(const void* from, std::size_t count) {
    if (count > left_) throw std::logic_error("a step is larger than the memory between ranks was made for");
    if (count != 0) std::memcpy(data_, from, count);
    data_ += count;
    left_ -= count;
  }

  std::byte* data_;
  std::size_t left_;
};

class Reader {
 public:
  Reader(const std::byte* data, std::size_t size_bytes) noexcept : data_(data), left_(size_bytes) {}

  std::uint64_t number() {
    std::uint64_t value = 0;
    bytes(&value, sizeof value);
    return value;
  }
  void vector(std::vector<std::int32_t>& values) {
    const std::uint64_t count = number();
    if (count > left_ / sizeof(std::int32_t)) throw std::logic_error("a step of rank 0 is malformed");
    values.resize(count);
    bytes(values.data(), count * sizeof(std::int32_t));
    if (count % 2 != 0) bytes(padding_, 4);
  }

 private:
  void bytes(void* to, std::size_t count) {
    if (count > left_) throw std::logic_error("a step of rank 0 is malformed");
    if (count != 0) std::memcpy(to, data_, count);
    data_ += count;
    left_ -= count;
  }

  const std::byte* data_;
  std::size_t left_;
  char padding_[4] = {};
};

}  // namespace

std::shared_ptr<StepMemory> StepMemory::create(const StepLimits& limits, std::uint64_t build_id) {
  std::shared_ptr<SharedMemory> memory = SharedMemory::create(total_bytes(limits));
  auto* const shared = new (memory->data()) Header{};
  shared->build_id = build_id;
  shared->limits = limits;
  shared->magic = magic;
  return std::shared_ptr<StepMemory>(new StepMemory(std::move(memory), limits));
}

std::shared_ptr<StepMemory> StepMemory::open(std::shared_ptr<SharedMemory> memory, std::uint64_t build_id) {
  if (memory->size_bytes() < header_bytes || header(*memory).magic != magic) {
    throw std::invalid_argument("the memory of steps has another layout than this build of precast: all ranks must run the "
                                "same one");
  }
  const Header& shared = header(*memory);
  if (shared.build_id != build_id) {
    throw std::invalid_argument(concat("rank 0 runs build ", shared.build_id, " of precast and the engine, and this is ",
                                       build_id, ": all ranks must run the same one"));
  }
  const StepLimits limits = shared.limits;
  if (memory->size_bytes() != total_bytes(limits)) throw std::invalid_argument("the memory of steps has another size");
  return std::shared_ptr<StepMemory>(new StepMemory(std::move(memory), limits));
}

StepMemory::StepMemory(std::shared_ptr<SharedMemory> memory, const StepLimits& limits)
    : memory_(std::move(memory)), limits_(limits) {}

void StepMemory::publish(std::uint32_t number, const StepBatch& batch) {
  if (!batch.token_sources.empty()) throw std::logic_error("a step for several ranks has tokens that are not known");
  Writer writer(slot(number), slot_bytes(limits_));
  writer.number(batch.id);
  writer.vector(batch.token_ids);
  writer.vector(batch.query_starts);
  writer.vector(batch.context_lengths);
  writer.vector(batch.logit_rows);
  writer.number(batch.block_tables.size());
  for (const BlockTable& table : batch.block_tables) {
    writer.number(static_cast<std::uint64_t>(table.width));
    writer.vector(table.blocks);
  }
  header(*memory_).published.store(number);
  if (header(*memory_).published_sleepers.load() != 0) futex_wake_all(header(*memory_).published);
}

void StepMemory::read(std::uint32_t number, StepBatch& batch) const {
  Reader reader(slot(number), slot_bytes(limits_));
  batch.id = reader.number();
  reader.vector(batch.token_ids);
  reader.vector(batch.query_starts);
  reader.vector(batch.context_lengths);
  reader.vector(batch.logit_rows);
  batch.needs_logits.assign(batch.logit_rows.size(), 1);
  batch.block_tables.resize(reader.number());
  for (BlockTable& table : batch.block_tables) {
    table.width = static_cast<std::int32_t>(reader.number());
    reader.vector(table.blocks);
  }
}

void StepMemory::stop() noexcept {
  header(*memory_).stopped.store(1);
  futex_wake_all(header(*memory_).published);
}

bool StepMemory::is_stopped() const noexcept { return header(*memory_).stopped.load() != 0; }

void StepMemory::report_done(std::size_t rank, std::uint32_t number) noexcept {
  Worker& self = worker(rank);
  self.done.store(number);
  if (self.done_sleepers.load() != 0) futex_wake_all(self.done);
}

void StepMemory::report_ready(std::size_t rank) noexcept {
  worker(rank).state.store(static_cast<std::uint32_t>(State::ready));
  futex_wake_all(worker(rank).state);
}

void StepMemory::report_error(std::size_t rank, std::int32_t code, const std::string& text) noexcept {
  Worker& self = worker(rank);
  self.error_code = code;
  self.error_bytes = static_cast<std::uint32_t>(std::min(text.size(), sizeof self.error));
  std::memcpy(self.error, text.data(), self.error_bytes);
  self.state.store(static_cast<std::uint32_t>(State::failed));
  futex_wake_all(self.state);
}

std::atomic<std::uint32_t>& StepMemory::published() const noexcept { return header(*memory_).published; }

std::atomic<std::uint32_t>& StepMemory::published_sleepers() const noexcept {
  return header(*memory_).published_sleepers;
}

StepMemory::Worker& StepMemory::worker(std::size_t rank) const noexcept {
  return reinterpret_cast<Worker*>(memory_->data() + header_bytes)[rank];
}

std::byte* StepMemory::slot(std::uint32_t number) const noexcept {
  return memory_->data() + header_bytes + workers_bytes(limits_) + number % limits_.num_slots * slot_bytes(limits_);
}

float* StepMemory::logits(std::uint32_t number) const noexcept {
  std::byte* const all =
      memory_->data() + header_bytes + workers_bytes(limits_) + limits_.num_slots * slot_bytes(limits_);
  return reinterpret_cast<float*>(all + number % limits_.num_slots * logits_bytes(limits_));
}

}  // namespace precast
