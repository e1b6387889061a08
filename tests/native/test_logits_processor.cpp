#include <functional>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "runtime/native/src/sampling/sampler.h"
#include "tests/native/check.h"

using namespace precast;

namespace {

constexpr float masked = -std::numeric_limits<float>::infinity();

struct Recorder : LogitsProcessor {
  std::function<void(std::span<ProcessorRow>)> work;
  int num_calls = 0;

  void process(std::span<ProcessorRow> rows) override {
    ++num_calls;
    work(rows);
  }
};

/// Three greedy requests with ids 0, 1, 2 over logits {1, 2, 3}; 0 and 2 want the processor.
struct Requests {
  std::vector<float> logits{1.0F, 2.0F, 3.0F};
  std::vector<SamplingParams> params = std::vector<SamplingParams>(3);
  std::vector<std::int32_t> token_ids{0, 1};
  std::vector<SamplingRow> rows;
  Recorder processor;

  Requests() {
    for (std::size_t r = 0; r < 3; ++r) {
      params[r].temperature = 0.0F;
      rows.push_back({.logits = logits,
                      .params = &params[r],
                      .token_ids = token_ids,
                      .num_prompt_tokens = 1,
                      .request_id = r,
                      .wants_processor = r != 1});
    }
  }

  std::vector<SampledToken> sample() {
    Sampler sampler;
    return sampler.sample(rows, &processor);
  }
};

}  // namespace

TEST("a logits processor gets the rows that want it, once a step, and what it writes counts") {
  Requests requests;
  requests.processor.work = [](std::span<ProcessorRow> rows) {
    CHECK_EQ(rows.size(), std::size_t{2});
    CHECK_EQ(rows[0].source.request_id, std::uint64_t{0});
    CHECK_EQ(rows[1].source.request_id, std::uint64_t{2});
    rows[1].logits[0] = 10.0F;
  };
  const std::vector<SampledToken> tokens = requests.sample();
  CHECK_EQ(requests.processor.num_calls, 1);
  CHECK_EQ(tokens[0].token_id, 2);
  CHECK_EQ(tokens[1].token_id, 2);
  CHECK_EQ(tokens[2].token_id, 0);
  CHECK_EQ(requests.logits[0], 1.0F);  // a copy was written to
}

TEST("a logits processor comes after logit bias and before penalties") {
  Requests requests;
  requests.params[0].logit_bias = {{1, 5.0F}};
  requests.params[0].bad_words = {{2}};
  requests.params[0].repetition_penalty = 2.0F;
  requests.params[0].num_logprobs = 0;
  requests.processor.work = [](std::span<ProcessorRow> rows) {
    CHECK_EQ(rows[0].logits[1], 7.0F);
    CHECK_EQ(rows[0].logits[2], masked);
    CHECK_EQ(rows[0].source.logits[2], 3.0F);
    rows[0].logits[2] = 3.0F;  // 0 and 1 are in the prompt and the output: they become 0.5 and 2.5
    rows[0].logits[1] = 5.0F;
  };
  const SampledToken token = requests.sample()[0];
  CHECK_EQ(token.token_id, 2);
  CHECK_EQ(token.logprobs.front().rank, 1);  // of the raw logits
}

TEST("a failure of one row ends that request; a thrown error those that want the processor") {
  Requests requests;
  requests.processor.work = [](std::span<ProcessorRow> rows) {
    rows[0].error = Error(ErrorCode::invalid_argument, "the grammar is stuck");
  };
  std::vector<SampledToken> tokens = requests.sample();
  CHECK_EQ(std::string(tokens[0].error->what()), std::string("the grammar is stuck"));
  CHECK(!tokens[1].error && !tokens[2].error);

  requests.processor.work = [](std::span<ProcessorRow>) { throw Error(ErrorCode::internal, "the callback failed"); };
  tokens = requests.sample();
  CHECK_EQ(std::string(tokens[0].error->what()), std::string("the callback failed"));
  CHECK(!tokens[1].error);
  CHECK_EQ(std::string(tokens[2].error->what()), std::string("the callback failed"));
}

TEST("what a processor leaves unusable is its own request's error") {
  Requests requests;
  requests.processor.work = [](std::span<ProcessorRow> rows) {
    for (float& logit : rows[0].logits) logit = masked;
    rows[1].logits[0] = std::numeric_limits<float>::quiet_NaN();
  };
  const std::vector<SampledToken> tokens = requests.sample();
  CHECK(std::string(tokens[0].error->what()).find("masked all 3") != std::string::npos);
  CHECK(!tokens[1].error);
  CHECK(std::string(tokens[2].error->what()).find("NaN") != std::string::npos);
}

TEST("a processor does not see a row whose raw logits are unusable") {
  Requests requests;
  const std::vector<float> bad{1.0F, std::numeric_limits<float>::quiet_NaN(), 0.0F};
  requests.rows[0].logits = bad;
  requests.processor.work = [](std::span<ProcessorRow> rows) { CHECK_EQ(rows.size(), std::size_t{1}); };
  const std::vector<SampledToken> tokens = requests.sample();
  CHECK(tokens[0].error->code() == ErrorCode::internal);
  CHECK_EQ(tokens[2].token_id, 2);
}

TEST("a row that wants a processor without one is a defect of the caller") {
  Requests requests;
  Sampler sampler;
  CHECK_THROWS(sampler.sample(requests.rows));
}

TEST("a token bit mask keeps the tokens whose bits are set") {
  std::vector<float> logits(70, 1.0F);
  const std::vector<std::uint32_t> allowed{0xFFFFFFFF, 0x80000001, 0x20};
  apply_token_bit_mask(allowed, logits);
  for (std::size_t i = 0; i < 70; ++i) {
    const bool is_allowed = i < 33 || i == 63 || i == 69;
    CHECK_EQ(logits[i], is_allowed ? 1.0F : masked);
  }
  CHECK_THROWS(apply_token_bit_mask(std::vector<std::uint32_t>(2), logits));
  CHECK_THROWS(apply_token_bit_mask(std::vector<std::uint32_t>(4), logits));
}
