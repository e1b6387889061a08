// precast.h with an engine: everything that needs a session, on one of the test's own.
#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "precast.h"
#include "tests/native/check.h"
#include "tests/native/external_engine.h"
#include "tests/native/failing_memory.h"
#include "tests/native/waiting.h"

using namespace precast::test;
using Ids = std::vector<std::int32_t>;

namespace {

std::string message_of(precast_error_t* error) {
  if (error == nullptr) return "";
  const std::string message = precast_error_message(error);
  precast_error_delete(error);
  return message;
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

/// An engine over `table`, with the events of its requests.
struct World {
  explicit World(CountingTable& counting) : table(counting.table()) {
    precast_engine_options_init(&options, sizeof options);
    options.session = &table;
    options.max_batch_size = 4;
    options.max_num_tokens = 8;
  }
  ~World() { precast_engine_delete(engine); }

  void load() { CHECK_EQ(message_of(try_load()), ""); }
  precast_error_t* try_load() {
    return precast_engine_new(external_engine_directory().path().c_str(), &options, &engine);
  }

  precast_error_t* submit(precast_request_t request, const Ids& prompt, const precast_sampling_t& sampling,
                          std::uint32_t* queued = nullptr) {
    request.prompt_token_ids = prompt.data();
    request.num_prompt_tokens = prompt.size();
    request.sampling = &sampling;
    const precast_request_t* pointer = &request;
    return precast_engine_submit(engine, &pointer, 1, queued);
  }

  void submit_greedy(std::uint64_t id, const Ids& prompt, std::uint32_t max_tokens) {
    CHECK_EQ(message_of(submit(request(id), prompt, greedy(max_tokens))), "");
  }

  static precast_request_t request(std::uint64_t id) {
    precast_request_t made;
    precast_request_init(&made, sizeof made);
    made.id = id;
    return made;
  }

  static precast_sampling_t greedy(std::uint32_t max_tokens) {
    precast_sampling_t sampling;
    precast_sampling_init(&sampling, sizeof sampling);
    sampling.temperature = 0.0F;
    sampling.max_tokens = max_tokens;
    return sampling;
  }

  /// Waits until `count` requests have sent their last event.
  void wait(int count) {
    while (count > 0) {
      precast_event_t some[3];
      std::size_t num_events = 0;
      CHECK_EQ(message_of(precast_engine_wait(engine, some, sizeof some[0], 3, patience_ns, &num_events)), "");
      CHECK(num_events > 0);
      for (std::size_t i = 0; i < num_events; ++i) {
        const precast_event_t& event = some[i];
        if (event.kind == PRECAST_EVENT_TOKEN) tokens[{event.request_id, event.sequence}].push_back(event.token_id);
        else ends[{event.request_id, event.sequence}] = event.finish_reason;
        if (event.error != nullptr) errors[event.request_id] = precast_error_message(event.error);
        for (std::size_t k = 0; k < event.num_logprobs; ++k) {
          logprobs.push_back(event.logprobs[k]);
          logprobs_of[{event.request_id, event.sequence}].push_back(event.logprobs[k]);
        }
        count -= static_cast<int>(event.is_last);
        precast_event_clear(&some[i], sizeof some[i]);
        CHECK(some[i].error == nullptr && some[i].logprobs == nullptr);
      }
    }
  }

  std::string json(precast_error_t* (*read)(const precast_engine_t*, char**)) const {
    char* text = nullptr;
    CHECK_EQ(message_of(read(engine, &text)), "");
    std::string copy = text;
    precast_string_delete(text);
    return copy;
  }

  using Sequence = std::pair<std::uint64_t, std::uint32_t>;

  precast_session_table_t table;
  precast_engine_options_t options{};
  precast_engine_t* engine = nullptr;
  std::map<Sequence, Ids> tokens;
  std::map<Sequence, precast_finish_reason_t> ends;
  std::map<std::uint64_t, std::string> errors;
  std::vector<precast_logprob_t> logprobs;
  std::map<Sequence, std::vector<precast_logprob_t>> logprobs_of;
};

}  // namespace

TEST("an external session runs requests to their ends, and is told what it needs") {
  CountingTable counting;
  {
    World world(counting);
    world.load();
    world.submit_greedy(1, {3, 4, 5}, 4);
    world.submit_greedy(2, {35}, 8);  // 37 is the end of a sequence
    world.wait(2);
    CHECK((world.tokens[{1, 0}] == Ids{6, 7, 8, 9}));
    CHECK((world.tokens[{2, 0}] == Ids{36, 37}));
    CHECK((world.ends[{1, 0}] == PRECAST_FINISH_LENGTH));
    CHECK((world.ends[{2, 0}] == PRECAST_FINISH_STOP));
    CHECK(contains(world.json(precast_engine_info), "\"num_blocks\": 64"));
    CHECK(contains(world.json(precast_engine_info), "\"max_seq_len\": 64"));
    CHECK(!contains(world.json(precast_engine_info), "onnxruntime_version"));
  }
  CHECK_EQ(counting.num_created, 1);
  CHECK_EQ(counting.num_destroyed, 1);
  CHECK_EQ(counting.config.vocab_size, 40U);
  CHECK_EQ(counting.config.tokens_per_block, 4U);
  CHECK_EQ(counting.config.num_kv_groups, 1U);
}

TEST("requests run ahead of a session that chooses tokens, and give the same") {
  std::map<World::Sequence, Ids> expected;
  for (const std::uint32_t in_flight : {1U, 2U, 3U}) {
    for (const bool chooses : {false, true}) {
      CountingTable counting;
      counting.max_in_flight = in_flight;
      counting.chooses_tokens = chooses;
      World world(counting);
      world.load();
      for (std::uint64_t id = 1; id <= 6; ++id) world.submit_greedy(id, Ids(5 + id, static_cast<std::int32_t>(id)), 20);
      world.wait(6);
      if (expected.empty()) expected = world.tokens;
      CHECK(world.tokens == expected);
      CHECK_EQ(counting.most_in_flight, static_cast<std::size_t>(in_flight));
      CHECK_EQ(counting.num_token_sources > 0, chooses && in_flight > 1);
    }
  }
}

namespace {

/// Requests of every kind, on a session with so many candidates.
struct ManyKinds {
  explicit ManyKinds(CountingTable& counting) : world(counting) {
    world.load();
    for (std::uint64_t id = 1; id <= 8; ++id) {
      precast_sampling_t sampling = World::greedy(6);
      sampling.num_logprobs = std::array{-1, 0, 3, 20}[id % 4];
      if (id > 4) {
        sampling.temperature = 3.0F;
        sampling.top_k = std::array{2U, 6U, 20U, 0U}[id % 4];
        sampling.top_p = 0.95F;
        sampling.seed = id;
      }
      if (id == 6) sampling.min_tokens = 3;
      precast_request_t request = World::request(id);
      request.n = 2;
      CHECK_EQ(message_of(world.submit(request, {static_cast<std::int32_t>(id), 5}, sampling)), "");
    }
    world.wait(8);
    CHECK(world.errors.empty());
  }

  World world;
};

}  // namespace

TEST("requests get from candidates what they get from whole rows") {
  CountingTable all_rows;
  const ManyKinds expected(all_rows);
  CHECK(all_rows.num_whole_rows > 0);
  for (const bool chooses : {false, true}) {
    for (const std::uint32_t in_flight : {1U, 2U}) {
      CountingTable counting;
      counting.max_candidates = 8;
      counting.chooses_tokens = chooses;
      counting.max_in_flight = in_flight;
      const ManyKinds kinds(counting);
      CHECK(kinds.world.tokens == expected.world.tokens);
      CHECK(kinds.world.ends == expected.world.ends);
      CHECK_EQ(kinds.world.logprobs.size(), expected.world.logprobs.size());
      for (const auto& [sequence, logprobs] : kinds.world.logprobs_of) {
        const auto& others = expected.world.logprobs_of.at(sequence);
        CHECK_EQ(logprobs.size(), others.size());
        for (std::size_t i = 0; i < logprobs.size(); ++i) {
          CHECK_EQ(logprobs[i].token_id, others[i].token_id);
          CHECK_EQ(logprobs[i].rank, others[i].rank);
          CHECK(std::abs(logprobs[i].logprob - others[i].logprob) < 1e-5F);
        }
      }
      CHECK(counting.num_rows_of_candidates > 0 && counting.num_whole_rows > 0);
      CHECK(counting.num_whole_rows < all_rows.num_whole_rows);
      CHECK_EQ(counting.num_token_sources > 0, chooses && in_flight > 1);
    }
  }
}

TEST("several sequences of a request share their prompt and end with one last event") {
  CountingTable counting;
  World world(counting);
  world.load();
  precast_request_t request = World::request(1);
  request.n = 3;
  precast_sampling_t sampling = World::greedy(2);
  sampling.num_logprobs = 2;
  CHECK_EQ(message_of(world.submit(request, Ids(9, 7), sampling)), "");
  world.wait(1);
  CHECK_EQ(world.ends.size(), 3U);
  for (std::uint32_t i = 0; i < 3; ++i) CHECK((world.tokens[{1, i}] == Ids{8, 9}));
  CHECK(contains(world.json(precast_engine_stats), "\"prompt_tokens_computed\": 11"));  // 9, and 1 for each of the others
  CHECK_EQ(world.logprobs.size(), 3U * 2 * 3);
  CHECK_EQ(world.logprobs[0].token_id, world.logprobs[1].token_id);
  CHECK_EQ(world.logprobs[0].rank, 1U);
  // One logit of 4 and 39 of 0.
  CHECK(std::abs(world.logprobs[0].logprob - (4.0F - std::log(std::exp(4.0F) + 39.0F))) < 1e-5F);
  CHECK_EQ(world.logprobs[2].rank, 2U);
}

TEST("errors of a session end the requests of their step and no others") {
  CountingTable counting;
  World world(counting);
  world.load();
  world.submit_greedy(1, {CountingTable::poison}, 4);
  world.wait(1);
  world.submit_greedy(2, {CountingTable::refused}, 4);
  world.wait(1);
  world.submit_greedy(3, {1}, 2);
  world.wait(1);
  CHECK(contains(world.errors[1], "poisoned"));
  CHECK(contains(world.errors[2], "no room for this step"));
  CHECK((world.tokens[{3, 0}] == Ids{2, 3}));
}

TEST("a session's table and properties are checked, and it is destroyed once if it was made") {
  CountingTable counting;
  World world(counting);
  world.table.version = 2;
  CHECK(contains(message_of(world.try_load()), "version is 2"));
  world.table = counting.table();
  world.table.collect = nullptr;
  CHECK(contains(message_of(world.try_load()), "collect of precast_session_table_t is NULL"));
  CHECK_EQ(counting.num_created, 0);
  world.table = counting.table();
  counting.num_blocks = 0;
  CHECK(contains(message_of(world.try_load()), "num_blocks 0"));
  counting.num_blocks = 64;
  counting.max_in_flight = 65;
  CHECK(contains(message_of(world.try_load()), "max_in_flight 65"));
  counting.max_in_flight = 1;
  for (const std::uint32_t too_many : {41U, 1025U}) {
    counting.max_candidates = too_many;
    CHECK_EQ(message_of(world.try_load()), "the session has max_candidates " + std::to_string(too_many) +
                                               "; it must be 0 to 1024, and at most the vocabulary of 40");
  }
  CHECK_EQ(counting.num_created, 4);
  CHECK_EQ(counting.num_destroyed, 4);
  world.table.create = [](void*, const precast_session_config_t*, precast_session_properties_t*, void**) {
    return precast_error_new(PRECAST_ERROR_NOT_FOUND, "no device");
  };
  precast_error_t* error = world.try_load();
  CHECK_EQ(precast_error_code(error), PRECAST_ERROR_NOT_FOUND);
  CHECK_EQ(message_of(error), "no device");
  CHECK_EQ(counting.num_destroyed, 4);
  world.table = counting.table();
  world.options.kernel_level = "portable";
  CHECK(contains(message_of(world.try_load()), "kernel_level are of the built-in session"));
}

TEST("a session with few blocks shortens sequences, and the log says so") {
  CountingTable counting;
  counting.num_blocks = 5;
  World world(counting);
  struct Line {
    precast_log_level_t level;
    std::string text;
  };
  std::vector<Line> lines;
  world.options.log_user_data = &lines;
  world.options.log = [](void* user_data, precast_log_level_t level, const char* message) {
    static_cast<std::vector<Line>*>(user_data)->push_back({level, message});
  };
  world.load();
  CHECK(contains(world.json(precast_engine_info), "\"max_seq_len\": 20"));
  world.submit_greedy(1, {CountingTable::poison}, 1);
  world.wait(1);
  CHECK_EQ(lines.size(), 3U);
  CHECK(lines[0].level == PRECAST_LOG_INFO && contains(lines[0].text, "CountingForTests"));
  CHECK(lines[1].level == PRECAST_LOG_WARNING && contains(lines[1].text, "max_seq_len is 20 and not 64"));
  CHECK(lines.back().level == PRECAST_LOG_ERROR && contains(lines.back().text, "poisoned"));
}

namespace {

/// A processor that forbids the token that would come next, ends request 9 with an error, and remembers its rows.
struct Forbidding {
  const precast_engine_t* engine = nullptr;
  std::vector<std::uint64_t> started;
  std::vector<std::uint64_t> processed;

  precast_logits_processor_t table() {
    precast_logits_processor_t made{};
    made.struct_size = sizeof made;
    made.user_data = this;
    made.start = [](void* user_data, const precast_logits_row_t* rows, std::size_t row_size, std::size_t num_rows) {
      auto* self = static_cast<Forbidding*>(user_data);
      CHECK_EQ(row_size, sizeof *rows);
      for (std::size_t i = 0; i < num_rows; ++i) {
        CHECK(rows[i].logits == nullptr && rows[i].allowed == nullptr);
        self->started.push_back(rows[i].request_id);
      }
    };
    made.process = [](void* user_data, precast_logits_row_t* rows, std::size_t, std::size_t num_rows,
                      std::size_t vocab_size) {
      auto* self = static_cast<Forbidding*>(user_data);
      // A callback may call the engine.
      char* json = nullptr;
      CHECK(precast_engine_stats(self->engine, &json) == nullptr);
      precast_string_delete(json);
      for (std::size_t i = 0; i < num_rows; ++i) {
        precast_logits_row_t& row = rows[i];
        self->processed.push_back(row.request_id);
        const auto next = static_cast<std::size_t>(row.token_ids[row.num_token_ids - 1] + 1) % vocab_size;
        row.allowed[next / 32] &= ~(1U << (next % 32));
        row.logits[(next + 4) % vocab_size] = 3.0F;
        if (row.request_id == 9) row.error = precast_error_new(PRECAST_ERROR_INVALID_ARGUMENT, "not this one");
        if (row.request_id == 8) std::memset(row.allowed, 0, (vocab_size + 31) / 32 * 4);
      }
    };
    return made;
  }
};

}  // namespace

TEST("a logits processor sees the requests that ask for it, and may call the engine") {
  CountingTable counting;
  World world(counting);
  Forbidding forbidding;
  const precast_logits_processor_t table = forbidding.table();
  world.options.logits_processor = &table;
  world.load();
  forbidding.engine = world.engine;
  const auto submit = [&](std::uint64_t id, bool processed) {
    precast_request_t request = World::request(id);
    request.use_logits_processor = processed ? 1 : 0;
    CHECK_EQ(message_of(world.submit(request, {3}, World::greedy(2))), "");
  };
  submit(1, true);
  submit(2, false);
  submit(8, true);
  submit(9, true);
  world.wait(4);
  CHECK((world.tokens[{1, 0}] == Ids{8, 13}));
  CHECK((world.tokens[{2, 0}] == Ids{4, 5}));
  CHECK_EQ(world.errors[9], "not this one");
  CHECK(!world.errors[8].empty());
  CHECK(forbidding.started == forbidding.processed);
  CHECK_EQ(std::count(forbidding.processed.begin(), forbidding.processed.end(), 2U), 0);
}

TEST("without a logits processor nobody can ask for it") {
  CountingTable counting;
  World world(counting);
  world.load();
  precast_request_t request = World::request(1);
  request.use_logits_processor = 1;
  CHECK(contains(message_of(world.submit(request, {3}, World::greedy(2))), "without a logits processor"));
  precast_logits_processor_t empty{};
  empty.struct_size = sizeof empty;
  World other(counting);
  other.options.logits_processor = &empty;
  CHECK(contains(message_of(other.try_load()), "process of precast_logits_processor_t is NULL"));
}

TEST("the descriptor is readable exactly while waiting would not block") {
  CountingTable counting;
  Gate gate(false);
  counting.on_collect = [&gate] { gate.pass(); };
  World world(counting);
  world.load();
  int descriptor = -1;
  CHECK(precast_engine_event_fd(world.engine, &descriptor) == nullptr);
  const auto is_readable = [descriptor](int timeout_ms) {
    pollfd polled{.fd = descriptor, .events = POLLIN, .revents = 0};
    return ::poll(&polled, 1, timeout_ms) == 1;
  };
  CHECK(!is_readable(0));
  world.submit_greedy(1, {1}, 1);
  CHECK(!is_readable(20));
  gate.open();
  CHECK(is_readable(10'000));
  precast_event_t event;
  std::size_t count = 0;
  CHECK(precast_engine_wait(world.engine, &event, sizeof event, 1, 0, &count) == nullptr);
  CHECK(count == 1 && event.kind == PRECAST_EVENT_TOKEN);
  CHECK(is_readable(0));
  CHECK(precast_engine_wait(world.engine, &event, sizeof event, 1, 0, &count) == nullptr);
  CHECK(count == 1 && event.is_last == 1);
  CHECK(!is_readable(0));
  CHECK(precast_engine_shutdown(world.engine) == nullptr);
  CHECK(is_readable(10'000));
  precast_error_t* error = precast_engine_wait(world.engine, &event, sizeof event, 1, -1, &count);
  CHECK_EQ(precast_error_code(error), PRECAST_ERROR_SHUT_DOWN);
  precast_error_delete(error);
  CHECK(is_readable(0));
}

TEST("a full queue is a value, or an error for who does not ask") {
  CountingTable counting;
  Gate gate(false);
  counting.on_collect = [&gate] { gate.pass(); };
  World world(counting);
  world.options.max_queue_size = 3;
  world.load();
  std::uint32_t queued = 7;
  for (std::uint64_t id = 1; id <= 3; ++id) {
    CHECK_EQ(message_of(world.submit(World::request(id), {1}, World::greedy(1), &queued)), "");
    CHECK_EQ(queued, 1U);
  }
  // The first step may have taken some of them out of the queue by now; four more are too many in any case.
  precast_request_t four = World::request(4);
  four.n = 4;
  CHECK_EQ(message_of(world.submit(four, {1}, World::greedy(1), &queued)), "");
  CHECK_EQ(queued, 0U);
  CHECK(contains(message_of(world.submit(four, {1}, World::greedy(1))), "the queue is full"));
  gate.open();
  world.wait(3);
}

TEST("deadlines, priorities and statistics reach the caller") {
  CountingTable counting;
  World world(counting);
  world.options.max_batch_size = 1;
  world.options.iteration_stats_size = 100;
  world.options.kv_events_size = 100;
  world.load();
  precast_request_t late = World::request(1);
  late.deadline_ns = 1;
  CHECK_EQ(message_of(world.submit(late, {1}, World::greedy(1))), "");
  world.submit_greedy(2, Ids(9, 3), 2);
  world.wait(2);
  CHECK((world.ends[{1, 0}] == PRECAST_FINISH_TIMEOUT));
  const std::string iterations = world.json(precast_engine_iteration_stats);
  CHECK(contains(iterations, "\"num_context_tokens\": 8") && contains(iterations, "\"num_context_tokens\": 1"));
  CHECK_EQ(world.json(precast_engine_iteration_stats), "[]");
  const std::string events = world.json(precast_engine_kv_events);
  CHECK(contains(events, "{\"event_id\": 0, \"type\": \"created\", \"num_blocks\": 64}"));
  CHECK(contains(events, "\"type\": \"stored\", \"parent_hash\": null") && contains(events, "[3, 3, 3, 3]"));
  CHECK_EQ(world.json(precast_engine_kv_events), "[]");
  CHECK(precast_engine_reset_prefix_cache(world.engine) == nullptr);
}

TEST("statistics and KV events that there is no memory for are told by the next call") {
  CountingTable counting;
  World world(counting);
  world.options.iteration_stats_size = 100;
  world.options.kv_events_size = 100;
  world.load();
  world.submit_greedy(1, Ids(9, 3), 4);
  world.wait(1);
  // Fails at one allocation after the other, until there are no more.
  const auto json_in_the_end = [&world](precast_error_t* (*read)(const precast_engine_t*, char**)) {
    for (std::size_t num_left = 0;; ++num_left) {
      char* text = nullptr;
      fail_allocations(num_left, Failing::once);
      precast_error_t* const error = read(world.engine, &text);
      const bool has_failed = stop_failing();
      CHECK_EQ(error != nullptr, has_failed);
      if (!has_failed) {
        CHECK(num_left > 5);
        const std::string copy = text;
        precast_string_delete(text);
        return copy;
      }
      CHECK(text == nullptr);
      CHECK_EQ(precast_error_code(error), PRECAST_ERROR_RESOURCE_EXHAUSTED);
      precast_error_delete(error);
    }
  };
  const std::string iterations = json_in_the_end(precast_engine_iteration_stats);
  for (int step = 1; step <= 5; ++step) CHECK(contains(iterations, "\"iter\": " + std::to_string(step) + ","));
  const std::string events = json_in_the_end(precast_engine_kv_events);
  CHECK(contains(events, "\"type\": \"created\"") && contains(events, "[3, 3, 3, 3]"));
  CHECK_EQ(world.json(precast_engine_iteration_stats), "[]");
  CHECK_EQ(world.json(precast_engine_kv_events), "[]");
}

namespace {

/// A struct as the caller of a newer precast.h would have it.
template <typename T>
struct Newer {
  explicit Newer(const T& from) : known(from) { known.struct_size = sizeof *this; }

  T known;
  std::uint64_t unknown = 0;
};

}  // namespace

TEST("structs of older callers have the defaults of what they lack") {
  CountingTable counting;
  World world(counting);
  // What lies beyond a caller's struct is not looked at.
  world.options.struct_size = offsetof(precast_engine_options_t, worker_path);
  world.options.worker_path = reinterpret_cast<const char*>(1);
  world.load();
  precast_request_t request = World::request(1);
  request.struct_size = offsetof(precast_request_t, n);
  request.n = 77;
  precast_sampling_t sampling = World::greedy(2);
  sampling.struct_size = offsetof(precast_sampling_t, min_tokens);
  sampling.repetition_penalty = -1.0F;
  CHECK_EQ(message_of(world.submit(request, {1}, sampling)), "");
  world.wait(1);
  CHECK((world.tokens[{1, 0}] == Ids{2, 3}));
  // Of the oldest there can be, only what is set before the first optional field counts.
  sampling.struct_size = offsetof(precast_sampling_t, top_k);
  sampling.top_k = 1U << 31;
  CHECK_EQ(message_of(world.submit(World::request(2), {1}, sampling)), "");
  world.wait(1);
  CHECK((world.tokens[{2, 0}] == Ids{2, 3}));
  sampling.struct_size = 0;
  CHECK(contains(message_of(world.submit(World::request(3), {1}, sampling)), "precast_sampling_t.struct_size is 0"));
}

TEST("structs of newer callers are taken unless they set what this library does not know") {
  const auto unknown_of = [](const std::string& type) { return type + " sets fields that this library does not know"; };
  CountingTable counting;
  World world(counting);
  Newer table(counting.table());
  world.options.session = &table.known;
  table.unknown = 1;
  CHECK(contains(message_of(world.try_load()), unknown_of("precast_session_table_t")));
  table.unknown = 0;
  Forbidding forbidding;
  Newer processor(forbidding.table());
  world.options.logits_processor = &processor.known;
  processor.unknown = 1;
  CHECK(contains(message_of(world.try_load()), unknown_of("precast_logits_processor_t")));
  processor.unknown = 0;
  Newer options(world.options);
  const auto load = [&] {
    return precast_engine_new(external_engine_directory().path().c_str(), &options.known, &world.engine);
  };
  options.unknown = 1;
  CHECK(contains(message_of(load()), unknown_of("precast_engine_options_t")));
  CHECK_EQ(counting.num_created, 0);
  options.unknown = 0;
  CHECK_EQ(message_of(load()), "");

  const Ids prompt{1};
  Newer sampling(World::greedy(2));
  Newer request(World::request(1));
  request.known.prompt_token_ids = prompt.data();
  request.known.num_prompt_tokens = prompt.size();
  request.known.sampling = &sampling.known;
  const precast_request_t* pointer = &request.known;
  const auto submit = [&] { return precast_engine_submit(world.engine, &pointer, 1, nullptr); };
  request.unknown = 1;
  CHECK(contains(message_of(submit()), unknown_of("precast_request_t")));
  request.unknown = 0;
  sampling.unknown = 1;
  CHECK(contains(message_of(submit()), unknown_of("precast_sampling_t")));
  sampling.unknown = 0;
  CHECK_EQ(message_of(submit()), "");
  world.wait(1);
  CHECK((world.tokens[{1, 0}] == Ids{2, 3}));
}

TEST("events are written in the caller's size, which is at least that of the first version") {
  CountingTable counting;
  World world(counting);
  world.load();
  world.submit_greedy(1, {1}, 2);
  struct NewerEvent {
    precast_event_t known;
    std::uint64_t unknown;
  };
  for (bool is_over = false; !is_over;) {
    NewerEvent event{{}, 7};
    std::size_t count = 0;
    CHECK(precast_engine_wait(world.engine, &event.known, sizeof event, 1, patience_ns, &count) == nullptr);
    CHECK_EQ(count, 1U);
    CHECK_EQ(event.unknown, 0U);
    is_over = event.known.is_last != 0;
    precast_event_clear(&event.known, sizeof event);
  }
  CHECK(contains(message_of(precast_engine_wait(world.engine, nullptr, sizeof(precast_event_t), 1, 0, nullptr)), "NULL"));
  precast_event_t event;
  std::size_t count = 0;
  CHECK(contains(message_of(precast_engine_wait(world.engine, &event, 8, 1, 0, &count)), "event_size"));
}

TEST("tables that were never initialised, or end before what they must have, are refused by name") {
  CountingTable counting;
  World world(counting);
  world.table.struct_size = 0;
  CHECK(contains(message_of(world.try_load()), "precast_session_table_t.struct_size is 0"));
  world.table = counting.table();
  world.table.struct_size = offsetof(precast_session_table_t, destroy);
  CHECK(contains(message_of(world.try_load()), "destroy of precast_session_table_t is NULL"));
  world.table = counting.table();
  precast_logits_processor_t processor{};
  world.options.logits_processor = &processor;
  CHECK(contains(message_of(world.try_load()), "precast_logits_processor_t.struct_size is 0"));
  world.options.logits_processor = nullptr;
  world.options.capacity_policy = 3;
  CHECK(contains(message_of(world.try_load()), "capacity_policy is 3"));
  CHECK_EQ(counting.num_created, 0);
}

namespace {

/// What a request gets when collect's result is changed by `spoil`.
std::string error_of_result(precast_error_t* (*collect)(void*, std::uint64_t, precast_step_result_t*), bool chooses_tokens) {
  CountingTable counting;
  counting.chooses_tokens = chooses_tokens;
  World world(counting);
  world.table.collect = collect;
  world.load();
  world.submit_greedy(1, {3}, 2);
  world.wait(1);
  return world.errors[1];
}

}  // namespace

TEST("a row for which the session chooses no token ends its own request, also where that has run ahead") {
  for (const std::uint32_t max_in_flight : {1U, 2U}) {
    CountingTable counting;
    counting.chooses_tokens = true;
    counting.max_in_flight = max_in_flight;
    World world(counting);
    world.load();
    world.submit_greedy(1, {33}, 8);
    world.submit_greedy(2, {3}, 8);
    world.wait(2);
    CHECK((world.tokens[{1, 0}] == Ids{34, 35, 36}));
    CHECK(contains(world.errors[1], "the logits for position 4 hold NaN"));
    CHECK((world.tokens[{2, 0}] == Ids{4, 5, 6, 7, 8, 9, 10, 11}));
    CHECK_EQ(counting.most_in_flight, max_in_flight);
  }
}

TEST("results that cannot be end their requests with an error that says why") {
  const auto nothing = [](void*, std::uint64_t, precast_step_result_t*) -> precast_error_t* { return nullptr; };
  CHECK(contains(error_of_result(nothing, false), "has no logits, and 1 rows need them"));
  CHECK(contains(error_of_result(nothing, true), "has no token_ids"));
  const auto wild = [](void*, std::uint64_t, precast_step_result_t* result) -> precast_error_t* {
    static const std::int32_t token = CountingTable::vocab_size;
    result->token_ids = &token;
    return nullptr;
  };
  CHECK(contains(error_of_result(wild, true), "has token_ids[0] 40, outside the vocabulary of 40"));
  const auto nan = [](void*, std::uint64_t, precast_step_result_t* result) -> precast_error_t* {
    static const std::vector<float> logits(CountingTable::vocab_size, std::nanf(""));
    result->logits = logits.data();
    return nullptr;
  };
  CHECK(contains(error_of_result(nan, false), "NaN"));
}

namespace {

/// What requests 1 and 2, who share a step, get when the candidates of request 1 are changed by `spoil`. Both want three.
struct SpoiltCandidates {
  using Spoil = std::function<void(std::int32_t* ids, float* logits, float* log_sums, std::int32_t* token_ids)>;

  explicit SpoiltCandidates(const Spoil& spoil) {
    CountingTable counting;
    counting.chooses_tokens = true;
    counting.max_candidates = 5;
    counting.spoil = [&](precast_step_result_t& result) {
      spoil(const_cast<std::int32_t*>(result.candidate_ids), const_cast<float*>(result.candidate_logits),
            const_cast<float*>(result.log_sums), const_cast<std::int32_t*>(result.token_ids));
    };
    World world(counting);
    world.load();
    precast_sampling_t sampling = World::greedy(1);
    sampling.num_logprobs = 3;
    const Ids prompts[] = {{8}, {8, 19}};
    const precast_request_t* requests[2];
    precast_request_t made[2];
    for (std::size_t i = 0; i < 2; ++i) {
      made[i] = World::request(i + 1);
      made[i].prompt_token_ids = prompts[i].data();
      made[i].num_prompt_tokens = prompts[i].size();
      made[i].sampling = &sampling;
      requests[i] = &made[i];
    }
    CHECK_EQ(message_of(precast_engine_submit(world.engine, requests, 2, nullptr)), "");
    world.wait(2);
    first = world.errors[1];
    second = world.errors[2];
    if (second.empty()) CHECK((world.tokens[{2, 0}] == Ids{20}));
  }

  std::string first;
  std::string second;
};

/// Of both, whose step has failed.
std::string error_of_step(const SpoiltCandidates::Spoil& spoil) {
  const SpoiltCandidates spoilt(spoil);
  CHECK(!spoilt.first.empty());
  CHECK_EQ(spoilt.first, spoilt.second);
  return spoilt.first;
}

}  // namespace

TEST("candidates that cannot be end the requests of their step, with the row and the values") {
  // Row 0 of a step follows token 8: token 9 has logit 4, all others 0, so that ids 9, 0, 1 are its candidates.
  const std::string step_1 = "the session's result of step 1 has for row 0 ";
  CHECK(SpoiltCandidates([](auto...) {}).first.empty());
  CHECK_EQ(error_of_step([](auto* ids, auto...) { ids[2] = 40; }),
           step_1 + "candidate_ids 40 at 2, outside the vocabulary of 40");
  CHECK_EQ(error_of_step([](auto* ids, auto...) { ids[0] = -1; }),
           step_1 + "candidate_ids -1 at 0, outside the vocabulary of 40");
  CHECK_EQ(error_of_step([](auto* ids, auto...) { ids[2] = 9; }),
           step_1 + "candidate_ids 9 at 2, where it stands for the second time");
  CHECK_EQ(error_of_step([](auto*, float* logits, auto...) { logits[1] = 5.0F; }),
           step_1 + "candidate_logits 5 at 1 behind 4; they must descend");
  CHECK_EQ(error_of_step([](auto*, float* logits, auto...) { logits[2] = std::nanf(""); }),
           step_1 + "candidate_logits nan at 2 behind 0; they must descend");
  CHECK_EQ(error_of_step([](auto*, auto*, float* log_sums, auto*) { log_sums[0] = 3.99F; }),
           step_1 + "log_sums 3.99, below its largest logit 4");
  CHECK_EQ(error_of_step([](auto*, auto*, auto*, std::int32_t* token_ids) { token_ids[0] = 8; }),
           step_1 + "token_ids 8, and candidate_ids 9 with the largest logit");
  // Equals in another order are as good, and what stands behind three is nobody's.
  CHECK(SpoiltCandidates([](auto* ids, auto...) { std::swap(ids[1], ids[2]); }).first.empty());
  CHECK(SpoiltCandidates([](auto* ids, auto...) { ids[3] = 99; }).first.empty());
}

TEST("a choice that is missing among its candidates can be right only where they all tie") {
  const auto with_ties = [](int num_ties, std::int32_t chosen) {
    return [=](std::int32_t* ids, float* logits, float* log_sums, std::int32_t* token_ids) {
      for (std::int32_t i = 0; i < 3; ++i) ids[i] = 30 + i;
      for (int i = 0; i < num_ties; ++i) logits[i] = 4.0F;
      log_sums[0] = 6.0F;
      token_ids[0] = chosen;
    };
  };
  CHECK(SpoiltCandidates(with_ties(3, 9)).first.empty());   // the fourth of the equals, for which there was no room
  CHECK(SpoiltCandidates(with_ties(3, 30)).first.empty());
  CHECK(contains(error_of_step(with_ties(3, 31)), "has for row 0 token_ids 31, and candidate_ids 30"));
  CHECK(contains(error_of_step(with_ties(3, 39)), "has for row 0 token_ids 39, and candidate_ids 30"));
  CHECK(contains(error_of_step(with_ties(2, 9)), "has for row 0 token_ids 9, and candidate_ids 30"));
}

TEST("a row of candidates that overflows ends its own request alone") {
  const SpoiltCandidates overflown([](std::int32_t* ids, float* logits, float* log_sums, auto*) {
    ids[0] = -1;
    logits[0] = std::nanf("");
    log_sums[0] = std::nanf("");
  });
  CHECK(contains(overflown.first, "the largest is nan and the log of the sum of exp(logit) nan"));
  CHECK_EQ(overflown.second, "");
}

TEST("a session that has candidates must give them where they are wanted") {
  const auto error_without = [](auto precast_step_result_t::*array) {
    CountingTable counting;
    counting.max_candidates = 5;
    counting.spoil = [array](precast_step_result_t& result) { result.*array = nullptr; };
    World world(counting);
    world.load();
    world.submit_greedy(1, {3}, 2);
    world.wait(1);
    return world.errors[1];
  };
  const std::string step_1 = "the session's result of step 1 has no ";
  CHECK_EQ(error_without(&precast_step_result_t::candidate_ids), step_1 + "candidate_ids, and 1 rows want candidates");
  CHECK_EQ(error_without(&precast_step_result_t::candidate_logits), step_1 + "candidate_logits, and 1 rows want candidates");
  CHECK_EQ(error_without(&precast_step_result_t::log_sums), step_1 + "log_sums, and 1 rows want candidates");
}

TEST("a session of before there were candidates works as it did") {
  // What it was compiled with.
  struct OlderProperties {
    std::size_t struct_size;
    std::uint32_t num_blocks, max_in_flight, chooses_tokens;
  };
  struct OlderResult {
    std::size_t struct_size;
    const float* logits;
    const std::int32_t* token_ids;
  };
  static_assert(offsetof(precast_session_properties_t, chooses_tokens) == offsetof(OlderProperties, chooses_tokens));
  static_assert(offsetof(precast_step_result_t, candidate_ids) == sizeof(OlderResult));
  struct Older {
    CountingTable counting;
    precast_session_table_t table = counting.table();
  } older;
  older.counting.chooses_tokens = true;
  World world(older.counting);
  world.table.struct_size = offsetof(precast_session_table_t, destroy) + sizeof world.table.destroy;
  world.table.user_data = &older;
  world.table.create = [](void* user_data, const precast_session_config_t* config, precast_session_properties_t* properties,
                          void** session) -> precast_error_t* {
    auto* self = static_cast<Older*>(user_data);
    precast_session_properties_t made{};
    precast_error_t* const error = self->table.create(&self->counting, config, &made, session);
    auto* const known = reinterpret_cast<OlderProperties*>(properties);
    known->num_blocks = made.num_blocks;
    known->max_in_flight = made.max_in_flight;
    known->chooses_tokens = made.chooses_tokens;
    return error;
  };
  world.load();
  precast_sampling_t sampling = World::greedy(3);
  sampling.num_logprobs = 1;
  CHECK_EQ(message_of(world.submit(World::request(1), {3}, sampling)), "");
  sampling.temperature = 1.0F;
  sampling.top_k = 1;
  CHECK_EQ(message_of(world.submit(World::request(2), {6}, sampling)), "");
  world.wait(2);
  CHECK((world.tokens[{1, 0}] == Ids{4, 5, 6}));
  CHECK((world.tokens[{2, 0}] == Ids{7, 8, 9}));
  CHECK_EQ(older.counting.num_whole_rows, 6U);
  CHECK_EQ(older.counting.num_rows_of_candidates, 0U);
}

TEST("in a fork every call but delete says so") {
  CountingTable counting;
  World world(counting);
  world.load();
  const pid_t child = ::fork();
  if (child == 0) {
    char* json = nullptr;
    int descriptor = -1;
    std::size_t count = 0;
    precast_event_t event;
    const precast_request_t* none = nullptr;
    const std::vector<precast_error_t*> answers{precast_engine_info(world.engine, &json),
                                                precast_engine_stats(world.engine, &json),
                                                precast_engine_iteration_stats(world.engine, &json),
                                                precast_engine_kv_events(world.engine, &json),
                                                precast_engine_reset_prefix_cache(world.engine),
                                                precast_engine_event_fd(world.engine, &descriptor),
                                                precast_engine_submit(world.engine, &none, 0, nullptr),
                                                precast_engine_cancel(world.engine, 1, nullptr),
                                                precast_engine_wait(world.engine, &event, sizeof event, 1, -1, &count),
                                                precast_engine_shutdown(world.engine)};
    const bool all_refused = std::all_of(answers.begin(), answers.end(), [](const precast_error_t* error) {
      return error != nullptr && precast_error_code(error) == PRECAST_ERROR_FORKED;
    });
    precast_engine_delete(world.engine);
    ::_exit(all_refused ? 0 : 1);
  }
  int status = -1;
  CHECK_EQ(::waitpid(child, &status, 0), child);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  world.submit_greedy(1, {1}, 1);  // the parent's engine goes on
  world.wait(1);
}

TEST("an error that a callback makes is taken as it is, and an unknown code is an internal one") {
  precast_error_t* error = precast_error_new(PRECAST_ERROR_IO, "text");
  CHECK_EQ(precast_error_code(error), PRECAST_ERROR_IO);
  CHECK_EQ(message_of(error), "text");
  error = precast_error_new(99, nullptr);
  CHECK_EQ(precast_error_code(error), PRECAST_ERROR_INTERNAL);
  CHECK_EQ(message_of(error), "");
}
