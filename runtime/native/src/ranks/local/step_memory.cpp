#include "runtime/native/src/ranks/local/step_memory.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <stdexcept>
#include <utility>

#include "plugins/collectives/cpu/futex.h"
#include "runtime/native/src/concat.h"
#include "runtime/native/src/utf8.h"

namespace precast {
namespace {

constexpr std::uint64_t magic = 0x3230'5045'5453'4350;  // "PCSTEP02"
constexpr std::size_t header_bytes = 4096;
constexpr std::size_t page = 4096;

struct Header {
  std::uint64_t magic;
  std::uint64_t build_id;
  StepMemorySizes sizes;
  alignas(64) std::atomic<std::uint32_t> published;
  std::atomic<std::uint32_t> published_sleepers;
  std::atomic<std::uint32_t> stopped;
};
static_assert(sizeof(Header) <= header_bytes);

Header& header(const SharedMemory& memory) noexcept { return *reinterpret_cast<Header*>(memory.data()); }

std::size_t round_up(std::size_t bytes) noexcept { return (bytes + page - 1) / page * page; }

std::size_t slot_bytes(const StepMemorySizes& sizes) noexcept { return round_up(max_step_bytes(sizes.limits)); }

/// Where the arrays of a result begin, and the end of the last one.
struct ResultOffsets {
  explicit ResultOffsets(const StepMemorySizes& sizes) noexcept {
    if (!sizes.carries_logits) return;
    const std::size_t rows = sizes.limits.max_logit_rows;
    const auto after = [](std::size_t offset, std::size_t count) { return (offset + count * sizeof(float) + 63) / 64 * 64; };
    token_ids = after(0, rows * sizes.limits.vocab_size);
    candidate_ids = after(token_ids, rows);
    candidate_logits = after(candidate_ids, rows * sizes.max_candidates);
    log_sums = after(candidate_logits, rows * sizes.max_candidates);
    end = after(log_sums, rows);
  }

  std::size_t token_ids = 0;
  std::size_t candidate_ids = 0;
  std::size_t candidate_logits = 0;
  std::size_t log_sums = 0;
  std::size_t end = 0;
};

std::size_t result_bytes(const StepMemorySizes& sizes) noexcept { return round_up(ResultOffsets(sizes).end); }

std::size_t workers_bytes(const StepMemorySizes& sizes) noexcept {
  return round_up(sizes.world_size * sizeof(StepMemory::Worker));
}

/// How much of a text fits, in whole characters: callers are promised UTF-8.
std::size_t fitting_bytes(std::string_view text, std::size_t room) noexcept {
  if (text.size() <= room) return text.size();
  while (room > 0 && is_utf8_continuation(text[room])) --room;
  return room;
}

std::size_t total_bytes(const StepMemorySizes& sizes) noexcept {
  return header_bytes + workers_bytes(sizes) + sizes.num_slots * (slot_bytes(sizes) + result_bytes(sizes));
}

}  // namespace

std::shared_ptr<StepMemory> StepMemory::create(const StepMemorySizes& sizes, std::uint64_t build_id) {
  std::shared_ptr<SharedMemory> memory = SharedMemory::create(total_bytes(sizes));
  auto* const shared = new (memory->data()) Header{};
  shared->build_id = build_id;
  shared->sizes = sizes;
  shared->magic = magic;
  return std::shared_ptr<StepMemory>(new StepMemory(std::move(memory), sizes));
}

std::shared_ptr<StepMemory> StepMemory::open(std::shared_ptr<SharedMemory> memory, std::uint64_t build_id) {
  if (memory->size_bytes() < header_bytes || header(*memory).magic != magic) {
    throw std::invalid_argument("the memory of steps has another layout than this build of precast: all ranks must run the "
                                "same one");
  }
  const Header& shared = header(*memory);
  if (shared.build_id != build_id) {
    throw std::invalid_argument(concat("the engine runs build ", shared.build_id, " of precast and its files, and this rank ",
                                       build_id, ": all must run the same one"));
  }
  const StepMemorySizes sizes = shared.sizes;
  if (memory->size_bytes() != total_bytes(sizes)) {
    throw std::invalid_argument(concat("the memory of steps has ", memory->size_bytes(), " bytes, and this build of precast ",
                                       "expects ", total_bytes(sizes), ": all ranks must run the same one"));
  }
  return std::shared_ptr<StepMemory>(new StepMemory(std::move(memory), sizes));
}

StepMemory::StepMemory(std::shared_ptr<SharedMemory> memory, const StepMemorySizes& sizes)
    : memory_(std::move(memory)), sizes_(sizes) {}

void StepMemory::publish(std::uint32_t number, const StepBatch& batch) {
  encode_step(batch, {slot(number), slot_bytes(sizes_)});
  header(*memory_).published.store(number);
  if (header(*memory_).published_sleepers.load() != 0) futex_wake_all(header(*memory_).published);
}

void StepMemory::read(std::uint32_t number, StepBatch& batch) const {
  decode_step({slot(number), slot_bytes(sizes_)}, batch);
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

void StepMemory::report_ready(std::size_t rank, const WorkerProperties& properties) noexcept {
  WorkerProperties& shown = worker(rank).properties;
  shown = properties;
  shown.device[sizeof shown.device - 1] = '\0';
  worker(rank).state.store(static_cast<std::uint32_t>(State::ready));
  futex_wake_all(worker(rank).state);
}

void StepMemory::report_error(std::size_t rank, std::int32_t code, std::string_view text) noexcept {
  Worker& self = worker(rank);
  self.error_code = code;
  self.error_bytes = static_cast<std::uint32_t>(fitting_bytes(text, sizeof self.error));
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
  return memory_->data() + header_bytes + workers_bytes(sizes_) + number % sizes_.num_slots * slot_bytes(sizes_);
}

StepArrays StepMemory::result(std::uint32_t number) const noexcept {
  std::byte* const results =
      memory_->data() + header_bytes + workers_bytes(sizes_) + sizes_.num_slots * slot_bytes(sizes_);
  std::byte* const own = results + number % sizes_.num_slots * result_bytes(sizes_);
  const ResultOffsets offsets(sizes_);
  return {.logits = reinterpret_cast<float*>(own),
          .token_ids = reinterpret_cast<std::int32_t*>(own + offsets.token_ids),
          .candidate_ids = reinterpret_cast<std::int32_t*>(own + offsets.candidate_ids),
          .candidate_logits = reinterpret_cast<float*>(own + offsets.candidate_logits),
          .log_sums = reinterpret_cast<float*>(own + offsets.log_sums)};
}

}  // namespace precast
