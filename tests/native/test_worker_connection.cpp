// runtime/native/src/ranks: a worker's connection to its engine, and its signs of life, without processes.
#include "runtime/native/src/ranks/local/worker_connection.h"

#include <unistd.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "runtime/native/src/ranks/rank_options.h"
#include "runtime/native/src/ranks/sign_of_life.h"
#include "tests/native/check.h"
#include "tests/native/engine_files.h"
#include "tests/native/waiting.h"

namespace precast::test {
namespace {

using std::chrono::milliseconds;

/// Both ends of the memory of one worker, the engine's in `ranks` and `steps`.
struct Connected {
  explicit Connected(std::uint64_t wrong_build = 0) {
    directory.write("engine.json", "{}");
    const std::string path = directory.path().string();
    ranks = RankMemory::create({.tensor_parallel_size = 2, .buffer_bytes = 128, .slot_bytes = 128, .num_slots = 1});
    steps = StepMemory::create({.world_size = 1,
                                .num_slots = 2,
                                .carries_logits = true,
                                .max_candidates = 4,
                                .limits = {.max_tokens = 8,
                                           .max_sequences = 2,
                                           .max_table_entries = 8,
                                           .max_logit_rows = 2,
                                           .vocab_size = 3}},
                               build_id(path) + wrong_build);
    worker = WorkerConnection::open({.rank = 0,
                                     .rank_memory = ::dup(ranks->memory().descriptor()),
                                     .step_memory = ::dup(steps->memory().descriptor()),
                                     .engine_dir = path,
                                     .rank_timeout = milliseconds(1000)});
  }

  TemporaryDirectory directory;
  std::shared_ptr<RankMemory> ranks;
  std::shared_ptr<StepMemory> steps;
  std::unique_ptr<WorkerConnection> worker;
};

StepBatch step(std::uint64_t id) {
  StepBatch batch;
  batch.id = id;
  batch.token_ids = {1, 2};
  batch.logit_rows = {0, 1};
  batch.needs_logits = {1, 0};
  batch.num_candidates = {0, 2};
  return batch;
}

template <typename T>
std::vector<T> read(const T* array, std::size_t count) {
  return {array, array + count};
}

std::string thrown(const auto& action) {
  try {
    action();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "nothing was thrown";
}

/// Counts its heartbeats.
class Beating final : public Communicator {
 public:
  std::atomic<int> num_beats = 0;

  std::size_t num_tensor_ranks() const noexcept override { return 1; }
  std::size_t tensor_rank() const noexcept override { return 0; }
  void all_reduce(std::span<const float>, std::span<float>, const ParallelFor&) override {}
  void all_gather(std::span<const float>, std::size_t, std::size_t, std::span<float>, std::size_t,
                  const ParallelFor&) override {}
  void send(std::span<const float>) override {}
  void receive(std::span<float>) override {}
  void heartbeat() noexcept override { ++num_beats; }
};

}  // namespace

TEST("worker connection: steps come in order, ahead of their results, which lie where the engine looks for them") {
  Connected both;
  CHECK(!both.worker->has_next_step());
  both.steps->publish(1, step(11));
  both.steps->publish(2, step(12));
  StepBatch batches[2];
  for (StepBatch& batch : batches) {
    CHECK(both.worker->has_next_step());
    CHECK(both.worker->next_step(batch));
  }
  CHECK(!both.worker->has_next_step());
  CHECK_EQ(batches[1].id, 12U);
  for (std::uint32_t number = 1; number <= 2; ++number) {
    const auto first = static_cast<float>(number * 100);
    const std::vector<float> logits{first, first + 1, first + 2};
    const std::vector<std::int32_t> tokens{static_cast<std::int32_t>(number), -1};
    const std::vector<std::int32_t> ids{2, 1, -7, -7};
    const std::vector<float> id_logits{first + 3, first + 4, 0, 0};
    const std::vector<float> log_sums{first + 5};
    both.worker->report_result(batches[number - 1],
                               {.logits = logits, .token_ids = tokens, .candidate_ids = ids, .candidate_logits = id_logits,
                                .log_sums = log_sums}, 4);
    CHECK_EQ(both.steps->worker(0).done.load(), number);
    const StepArrays found = both.steps->result(number);
    CHECK(read(found.logits, 3) == logits);
    CHECK(read(found.token_ids, 2) == tokens);
    CHECK(read(found.candidate_ids, 4) == ids);
    CHECK(read(found.candidate_logits, 4) == id_logits);
    CHECK(read(found.log_sums, 1) == log_sums);
  }
  CHECK_EQ(both.steps->result(1).logits[0], 100.0F);  // of the step before, until the next one of its slot
}

TEST("worker connection: a result that has no room is a defect, and is not written") {
  Connected both;
  both.steps->publish(1, step(1));
  StepBatch batch;
  CHECK(both.worker->next_step(batch));
  const std::vector<float> large(7);
  CHECK_EQ(thrown([&] { both.worker->report_result(batch, {.logits = large}, 4); }),
           "a step has a larger result than the memory between ranks was made for");
  const std::vector<std::int32_t> many(3);
  CHECK_EQ(thrown([&] { both.worker->report_result(batch, {.token_ids = many}, 4); }),
           "a step has a larger result than the memory between ranks was made for");
  CHECK_EQ(both.steps->worker(0).done.load(), 0U);
}

TEST("worker connection: who waits for a step hears that none follows, and that the ranks have failed") {
  for (const bool fails : {false, true}) {
    Connected both;
    std::atomic<bool> got = true;
    {
      std::jthread waiting([&] {
        StepBatch batch;
        got = both.worker->next_step(batch);
      });
      CHECK(comes_true([&] { return both.steps->published_sleepers().load() == 1; }));
      fails ? both.ranks->fail(1, "for a reason") : both.steps->stop();
    }
    CHECK(!got);
    CHECK(both.worker->is_over());
    CHECK_EQ(both.worker->has_failed(), fails);
    CHECK_EQ(both.steps->published_sleepers().load(), 0U);
  }
}

TEST("worker connection: another build is told the engine") {
  const Connected both(1);
  CHECK(both.worker == nullptr);
  CHECK(both.ranks->failure().starts_with("rank 0: the engine runs build "));
  CHECK(both.ranks->failure().ends_with(": all must run the same one"));
}

TEST("signs of life: a call that takes long shows them, as long as it may take and no longer") {
  Beating rank;
  {
    SignOfCalls signs(rank, milliseconds(1), milliseconds(60'000));
    CHECK_EQ(signs.during([] { return 5; }), 5);
    CHECK_EQ(thrown([&] { signs.during([] { throw std::runtime_error("no"); }); }), "no");
    CHECK(signs.during([&] { return comes_true([&] { return rank.num_beats > 3; }); }));
  }
  const int before = rank.num_beats;
  {
    SignOfCalls signs(rank, milliseconds(1), milliseconds(0));
    std::atomic<int> num_turns = 0;
    const Regularly others(milliseconds(1), [&] { ++num_turns; });
    signs.during([&] { CHECK(comes_true([&] { return num_turns > 10; })); });
  }
  CHECK_EQ(rank.num_beats.load(), before);
}

TEST("signs of life: whoever shows them does not wait for the next one at the end") {
  Beating rank;
  const auto start = std::chrono::steady_clock::now();
  {
    const Regularly seldom(std::chrono::hours(1), [&] { rank.heartbeat(); });
    CHECK(comes_true([&] { return rank.num_beats == 1; }));
  }
  CHECK(std::chrono::steady_clock::now() - start < patience);
}

}  // namespace precast::test
