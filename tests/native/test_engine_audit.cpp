// Audits: what an engine does when its own books do not add up, and who is audited.
#include <cstddef>
#include <memory>
#include <mutex>
#include <string>
#include <type_traits>
#include <vector>

#include "runtime/native/src/engine.h"
#include "runtime/native/src/engine_loader.h"
#include "tests/native/check.h"
#include "tests/native/engine_files.h"
#include "tests/native/environment_scope.h"
#include "tests/native/external_engine.h"
#include "tests/native/waiting.h"

using namespace precast;
using namespace precast::test;

namespace {

/// Chooses token 1, and makes the scheduler lose the blocks of the first sequence of one step.
class SpoilingSession final : public Session {
 public:
  explicit SpoilingSession(std::uint64_t spoilt_step) : spoilt_step_(spoilt_step) {}

  std::size_t max_in_flight() const noexcept override { return 1; }
  bool chooses_tokens() const noexcept override { return true; }

  void enqueue(const StepBatch& batch) override { batch_ = &batch; }

  StepResult collect(std::uint64_t step) override {
    // No session can do this that does not mean to: the batch is the first member of what the scheduler knows of the step.
    static_assert(std::is_standard_layout_v<ScheduledStep> && offsetof(ScheduledStep, batch) == 0);
    const auto& scheduled = reinterpret_cast<const ScheduledStep&>(*batch_);
    if (step == spoilt_step_) scheduled.sequences.front().request->kv.tables.front().clear();
    tokens_.assign(batch_->logit_rows.size(), 1);
    return {.logits = {}, .token_ids = tokens_};
  }

 private:
  const std::uint64_t spoilt_step_;
  const StepBatch* batch_ = nullptr;
  std::vector<std::int32_t> tokens_;
};

Submission greedy(std::uint64_t id, std::int32_t max_tokens) {
  Submission submission;
  submission.id = id;
  submission.prompt_token_ids = {5, 6};
  submission.max_tokens = max_tokens;
  submission.sampling.temperature = 0.0F;
  return submission;
}

std::vector<Event> wait_for_end(Engine& engine) {
  std::vector<Event> events;
  while (events.empty() || events.back().finish_reason == FinishReason::none) {
    const std::vector<Event> some = engine.wait(1, patience_ns);
    CHECK(!some.empty());
    events.push_back(some.front());
  }
  return events;
}

LoadedEngine load(const char* audit) {
  const EnvironmentScope environment("PRECAST_AUDIT", audit);
  EngineOptions options;
  options.make_session = [](const SessionConfig&) { return MadeSession{std::make_unique<SpoilingSession>(1), 64}; };
  return load_engine(external_engine_directory().path(), options);
}

}  // namespace

TEST("a failed audit stops the engine, and who ended in this very step hears of it") {
  std::mutex mutex;
  std::vector<std::string> lines;
  EngineSettings settings{.audit = true};
  settings.log = Log([&](LogLevel level, const std::string& message) {
    const std::lock_guard lock(mutex);
    CHECK(level == LogLevel::error);
    lines.push_back(message);
  });
  const SchedulerConfig config{.max_batch_size = 4, .max_num_tokens = 16, .session_chooses_tokens = true,
                               .kv = {.tokens_per_block = 4, .num_blocks = 8}};
  const EngineLimits limits{.vocab_size = 40, .max_seq_len = 16, .eos_token_ids = {}};
  Engine engine(std::make_unique<SpoilingSession>(2), config, limits, settings);
  engine.submit({greedy(1, 2)});
  const std::vector<Event> events = wait_for_end(engine);
  CHECK_EQ(events.size(), 2U);  // of the first step its token; the second one, which ended the request, tells nothing
  CHECK_EQ(events[0].token_id, 1);
  CHECK(events[1].error.has_value() && events[1].error->code() == ErrorCode::internal);
  const std::string wanted =
      "the engine stopped: the audit after step 2 failed: block 0 is in 0 tables and has 1 owners; please report this message, "
      "and load the engine again";
  CHECK_EQ(std::string(events[1].error->what()), wanted);
  CHECK_THROWS(engine.submit({greedy(2, 1)}));
  CHECK_THROWS(engine.wait(1, -1));
  const std::lock_guard lock(mutex);
  CHECK(lines == std::vector<std::string>({wanted}));
}

TEST("PRECAST_AUDIT says whether engines that are loaded are audited") {
  const LoadedEngine audited = load("1");
  audited.engine->submit({greedy(1, 1)});
  CHECK(wait_for_end(*audited.engine).back().finish_reason == FinishReason::error);
  for (const char* none : {"0", ""}) {
    const LoadedEngine other = load(none);
    other.engine->submit({greedy(1, 1)});
    CHECK(wait_for_end(*other.engine).back().finish_reason == FinishReason::length);
  }
  CHECK_EQ(refusal([] { load("yes"); }),
           "PRECAST_AUDIT is \"yes\"; set it to 1 for an audit after every step, to 0 for none");
}
