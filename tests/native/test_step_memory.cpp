// runtime/native/src/ranks: steps in shared memory, without an engine.
#include "runtime/native/src/ranks/local/step_memory.h"

#include <unistd.h>

#include <random>
#include <stdexcept>

#include "tests/native/check.h"
#include "tests/native/refusal.h"

namespace precast {
namespace {

using test::refusal;

constexpr StepMemorySizes sizes{.world_size = 3,
                                .num_slots = 2,
                                .carries_logits = true,
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
  for (std::size_t group = random() % 3; group > 0; --group) {
    const std::size_t width = random() % 10;
    batch.block_tables.push_back({random_numbers(random, sequences * width), static_cast<std::int32_t>(width)});
  }
  return batch;
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
    reader->logits(number)[69] = static_cast<float>(number);
    CHECK_EQ(writer->logits(number)[69], static_cast<float>(number));
  }
  CHECK(!reader->is_stopped());
  writer->stop();
  CHECK(reader->is_stopped());
}

TEST("steps: a step that is too large, or that has unknown tokens, is a defect of rank 0") {
  const auto steps = StepMemory::create(sizes, 1);
  StepBatch large;
  large.token_ids.assign(100'000, 1);
  CHECK_EQ(refusal([&] { steps->publish(1, large); }), "a step is larger than what ranks have room for");
  StepBatch unknown;
  unknown.token_sources.push_back({});
  CHECK_EQ(refusal([&] { steps->publish(1, unknown); }), "a step for several ranks has tokens that are not known");
}

TEST("steps: a rank of another build is refused, and so is memory that holds no steps") {
  const auto steps = StepMemory::create(sizes, 7);
  const auto mapped = [&] { return SharedMemory::open(::dup(steps->memory().descriptor())); };
  CHECK_EQ(refusal([&] { StepMemory::open(mapped(), 8); }),
           "rank 0 runs build 7 of precast and the engine, and this is 8: all ranks must run the same one");
  CHECK(refusal([&] { StepMemory::open(SharedMemory::create(1 << 20), 7); }).find("another layout") != std::string::npos);
  steps->report_error(1, 5, "no such file");
  const auto opened = StepMemory::open(mapped(), 7);
  const StepMemory::Worker& worker = opened->worker(1);
  CHECK_EQ(worker.error_code, 5);
  CHECK_EQ(std::string(worker.error, worker.error_bytes), "no such file");
}

}  // namespace precast
