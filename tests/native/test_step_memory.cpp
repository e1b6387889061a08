// runtime/native/src/ranks: steps in shared memory, without an engine.
#include "runtime/native/src/ranks/local/step_memory.h"

#include <unistd.h>

#include <array>
#include <chrono>
#include <random>
#include <span>
#include <stdexcept>
#include <thread>
#include <vector>

#include "tests/native/check.h"
#include "tests/native/refusal.h"

namespace precast {
namespace {

using test::refusal;

constexpr StepMemorySizes sizes{.world_size = 3,
                                .num_slots = 2,
                                .carries_logits = true,
                                .max_candidates = 5,
                                .limits = {.max_tokens = 100,
                                           .max_sequences = 10,
                                           .max_table_entries = 200,
                                           .max_logit_rows = 10,
                                           .vocab_size = 7}};

std::vector<std::int32_t> random_numbers(std::mt19937& random, std::size_t count) {
  std::vector<std::int32_t> numbers(count);
  for (std::int32_t& number : numbers) number = static_cast<std::int32_t>(random() % 1000) - 1;
  return numbers;
}

StepBatch random_step(std::mt19937& random, std::uint64_t id) {
  StepBatch batch;
  batch.id = id;
  const std::size_t sequences = 1 + random() % 10;
  batch.token_ids = random_numbers(random, 1 + random() % 100);
  batch.query_starts = random_numbers(random, sequences + 1);
  batch.context_lengths = random_numbers(random, sequences);
  batch.logit_rows = random_numbers(random, random() % 11);
  batch.num_candidates = random_numbers(random, batch.logit_rows.size());
  for (std::size_t row = 0; row < batch.logit_rows.size(); ++row) {
    batch.needs_logits.push_back(static_cast<std::uint8_t>(random() % 2));
  }
  for (std::size_t source = random() % 11; source > 0; --source) {
    batch.token_sources.push_back({static_cast<std::int32_t>(random() >> 1), static_cast<std::int32_t>(random() >> 1),
                                   std::uint64_t{random()} << 32 | random()});
  }
  for (std::size_t group = random() % 3; group > 0; --group) {
    const std::size_t width = random() % 10;
    batch.block_tables.push_back({random_numbers(random, sequences * width), static_cast<std::int32_t>(width)});
  }
  return batch;
}

/// Fills `count` places of an array with numbers from `first` on.
template <typename T>
void fill(T* array, std::size_t count, std::size_t first) {
  for (std::size_t i = 0; i < count; ++i) array[i] = static_cast<T>(first + i);
}

template <typename T>
void check_filled(const T* array, std::size_t count, std::size_t first) {
  for (std::size_t i = 0; i < count; ++i) CHECK_EQ(array[i], static_cast<T>(first + i));
}

/// What a worker writes into the arrays of a result, the engine reads there: they are as large as they say and apart.
void check_result(const StepMemory& worker, const StepMemory& engine, std::uint32_t number) {
  const StepArrays to = worker.result(number);
  const std::size_t first = std::size_t{1000} * number;
  fill(to.logits, 70, first);
  fill(to.token_ids, 10, first + 100);
  fill(to.candidate_ids, 50, first + 200);
  fill(to.candidate_logits, 50, first + 300);
  fill(to.log_sums, 10, first + 400);
  const StepArrays from = engine.result(number);
  check_filled(from.logits, 70, first);
  check_filled(from.token_ids, 10, first + 100);
  check_filled(from.candidate_ids, 50, first + 200);
  check_filled(from.candidate_logits, 50, first + 300);
  check_filled(from.log_sums, 10, first + 400);
}

}  // namespace

TEST("steps: what rank 0 writes is what a worker reads, whichever slot it lies in") {
  const auto writer = StepMemory::create(sizes, 42);
  const auto reader = StepMemory::open(SharedMemory::open(::dup(writer->memory().descriptor())), 42);
  std::mt19937 random(1);
  StepBatch read = random_step(random, 0);  // whatever was read before leaves nothing behind
  for (std::uint32_t number = 1; number < 200; ++number) {
    const StepBatch written = random_step(random, 1000 + number);
    writer->publish(number, written);
    CHECK_EQ(reader->published().load(), number);
    reader->read(number, read);
    CHECK_EQ(read.id, written.id);
    CHECK(read.token_ids == written.token_ids);
    CHECK(read.query_starts == written.query_starts);
    CHECK(read.context_lengths == written.context_lengths);
    CHECK(read.logit_rows == written.logit_rows);
    CHECK_EQ(read.block_tables.size(), written.block_tables.size());
    for (std::size_t group = 0; group < read.block_tables.size(); ++group) {
      CHECK_EQ(read.block_tables[group].width, written.block_tables[group].width);
      CHECK(read.block_tables[group].blocks == written.block_tables[group].blocks);
    }
    reader->report_done(2, number);
    CHECK_EQ(writer->worker(2).done.load(), number);
    CHECK_EQ(writer->worker(1).done.load(), 0U);
    CHECK(read.needs_logits == written.needs_logits);
    CHECK(read.num_candidates == written.num_candidates);
    CHECK_EQ(read.token_sources.size(), written.token_sources.size());
    for (std::size_t i = 0; i < read.token_sources.size(); ++i) {
      CHECK_EQ(read.token_sources[i].row, written.token_sources[i].row);
      CHECK_EQ(read.token_sources[i].source_row, written.token_sources[i].source_row);
      CHECK_EQ(read.token_sources[i].source_step, written.token_sources[i].source_step);
    }
    check_result(*reader, *writer, number);
  }
  CHECK(!reader->is_stopped());
  writer->stop();
  CHECK(reader->is_stopped());
}

TEST("steps: a step that is too large is a defect of rank 0") {
  const auto steps = StepMemory::create(sizes, 1);
  StepBatch large;
  large.token_ids.assign(100'000, 1);
  CHECK_EQ(refusal([&] { steps->publish(1, large); }), "a step is larger than what ranks have room for");
}

TEST("steps: the largest step of the limits has room") {
  const auto steps = StepMemory::create(sizes, 1);
  StepBatch largest;
  largest.token_ids.assign(sizes.limits.max_tokens, 1);
  largest.query_starts.assign(sizes.limits.max_sequences + 1, 1);
  largest.context_lengths.assign(sizes.limits.max_sequences, 1);
  largest.block_tables.push_back({std::vector<std::int32_t>(sizes.limits.max_table_entries, 1), 20});
  largest.logit_rows.assign(sizes.limits.max_logit_rows, 1);
  largest.needs_logits.assign(sizes.limits.max_logit_rows, 1);
  largest.num_candidates.assign(sizes.limits.max_logit_rows, 1);
  largest.token_sources.assign(sizes.limits.max_sequences, {});
  steps->publish(1, largest);
  StepBatch read;
  steps->read(1, read);
  CHECK_EQ(read.token_sources.size(), sizes.limits.max_sequences);
}

TEST("steps: what ranks show each other arrives in the order of ranks, in every turn") {
  const auto steps = StepMemory::create(sizes, 1);
  const auto run = [&](std::size_t rank) {
    std::mt19937 random(static_cast<unsigned>(rank));
    for (std::uint32_t turn = 0; turn < 300; ++turn) {
      const std::array<std::uint32_t, 2> mine{turn, static_cast<std::uint32_t>(rank)};
      std::array<std::uint32_t, 6> all{};
      steps->exchange(rank, std::as_bytes(std::span(mine)), std::as_writable_bytes(std::span(all)),
                      [] { std::this_thread::yield(); });
      for (std::uint32_t other = 0; other < 3; ++other) {
        CHECK_EQ(all[2 * other], turn);
        CHECK_EQ(all[2 * other + 1], other);
      }
      if (random() % 50 == 0) std::this_thread::sleep_for(std::chrono::microseconds(random() % 500));
    }
  };
  std::vector<std::jthread> ranks;
  for (std::size_t rank = 0; rank < 3; ++rank) ranks.emplace_back(run, rank);
}

TEST("steps: ranks show each other no more than there is room for") {
  const auto steps = StepMemory::create(sizes, 1);
  std::vector<std::byte> mine(StepMemory::most_exchanged_bytes + 1);
  std::vector<std::byte> all(3 * mine.size());
  const auto show = [&](std::size_t size, std::size_t all_size) {
    return refusal([&] { steps->exchange(0, std::span(mine).first(size), std::span(all).first(all_size), [] {}); });
  };
  CHECK_EQ(show(mine.size(), all.size()), "ranks show each other more than there is room for");
  CHECK_EQ(show(8, 23), "ranks show each other more than there is room for");
}

TEST("steps: a rank of another build is refused, and so is memory that holds no steps") {
  const auto steps = StepMemory::create(sizes, 7);
  const auto mapped = [&] { return SharedMemory::open(::dup(steps->memory().descriptor())); };
  CHECK_EQ(refusal([&] { StepMemory::open(mapped(), 8); }),
           "the engine runs build 7 of precast and its files, and this rank 8: all must run the same one");
  CHECK(refusal([&] { StepMemory::open(SharedMemory::create(1 << 20), 7); }).find("another layout") != std::string::npos);
  steps->report_error(1, 5, "no such file");
  const auto opened = StepMemory::open(mapped(), 7);
  const StepMemory::Worker& worker = opened->worker(1);
  CHECK_EQ(worker.error_code, 5);
  CHECK_EQ(std::string(worker.error, worker.error_bytes), "no such file");
  steps->report_error(1, 5, std::string(1023, 'x') + "\xc3\xa9");
  CHECK_EQ(std::string(worker.error, worker.error_bytes), std::string(1023, 'x'));  // no half of a character
}

}  // namespace precast
