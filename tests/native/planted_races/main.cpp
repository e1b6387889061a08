// Two races on purpose, in what the C++ tests run under ThreadSanitizer: if these are not reported, its silence elsewhere
// means nothing. ./test expects both programs to fail.
//
//     precast_planted_races queue | kernel
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string_view>
#include <thread>
#include <vector>

#include "runtime/native/src/engine.h"
#include "tests/native/parallel.h"

using namespace precast;

namespace {

/// Says that token 1 always comes next, and counts its steps where anybody may look.
class CountedSession final : public Session {
 public:
  explicit CountedSession(volatile int& num_steps) : num_steps_(num_steps) {}

  std::size_t max_in_flight() const noexcept override { return 1; }
  void enqueue(const StepBatch& batch) override { num_rows_ = batch.logit_rows.size(); }
  StepResult collect(std::uint64_t) override {
    num_steps_ = num_steps_ + 1;
    logits_.assign(num_rows_ * 2, 0.0F);
    for (std::size_t row = 0; row < num_rows_; ++row) logits_[row * 2 + 1] = 1.0F;
    return {.logits = logits_, .token_ids = {}};
  }

 private:
  volatile int& num_steps_;
  std::size_t num_rows_ = 0;
  std::vector<float> logits_;
};

/// The caller reads, without the engine's mutex, what the engine's thread writes. It does nothing else meanwhile: any call of
/// the engine would put the two in order.
void race_of_the_queue() {
  volatile int num_steps = 0;
  SchedulerConfig config;
  config.kv.num_blocks = 64;
  Engine engine(std::make_unique<CountedSession>(num_steps), config, {.vocab_size = 2, .max_seq_len = 64, .eos_token_ids = {}},
                EngineSettings{});
  Submission submission;
  submission.prompt_token_ids = {0};
  submission.max_tokens = 60;
  engine.submit({submission});
  while (num_steps < 60) std::this_thread::yield();
}

/// Two tasks of a kernel write to the same output. They meet first, by means that put nothing in order.
void race_of_a_kernel() {
  std::vector<float> sums(1);
  std::atomic<int> num_started = 0;
  test::ThreadsForTests threads(2);
  threads.parallel_for()(2, [&](std::size_t task) {
    num_started.fetch_add(1, std::memory_order_relaxed);
    while (num_started.load(std::memory_order_relaxed) < 2) std::this_thread::yield();
    sums[0] += static_cast<float>(task);
  });
  std::printf("%g\n", static_cast<double>(sums[0]));
}

}  // namespace

int main(int argc, char** argv) {
  const std::string_view which = argc == 2 ? argv[1] : "";
  if (which == "queue") race_of_the_queue();
  else if (which == "kernel") race_of_a_kernel();
  else return 2;
  return 0;
}
