// runtime/native/src/ranks/device: engines whose ranks run on devices, from the C API to processes that compute a model of
// one. What goes wrong is in test_device_failures.cpp.
#include "runtime/native/src/ranks/device/device_session.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "runtime/native/src/error.h"
#include "tests/native/check.h"
#include "tests/native/device_worker/device_model.h"
#include "tests/native/device_world.h"
#include "tests/native/external_engine.h"
#include "tests/native/waiting.h"

namespace precast::test {
namespace {

using Ids = DeviceWorld::Ids;

Ids prompt(std::int32_t seed, std::size_t count) {
  Ids ids;
  for (std::size_t i = 0; i < count; ++i) ids.push_back((seed * 7 + static_cast<std::int32_t>(i * i)) % device_vocab_size);
  return ids;
}

/// More requests than run at once, some with prompts of several chunks, two of them with the same beginning.
void run_greedy_requests(DeviceWorld& world) {
  for (int id = 1; id <= 9; ++id) {
    const auto length = static_cast<std::size_t>(1 + id * 13 % 30);
    world.submit(static_cast<std::uint64_t>(id), prompt(id % 7, length), DeviceWorld::greedy(12));
  }
  world.wait(9);
  for (int id = 1; id <= 9; ++id) {
    const auto length = static_cast<std::size_t>(1 + id * 13 % 30);
    CHECK(world.tokens.at({id, 0}) == device_output(prompt(id % 7, length), 12));
  }
  CHECK(world.errors.empty());
}

/// Clock ticks of processor time that a process has used.
long used_ticks(int process) {
  std::ifstream file("/proc/" + std::to_string(process) + "/stat");
  std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  long user = -1;
  long system = -1;
  const std::string behind_name = text.substr(text.rfind(')'));
  CHECK_EQ(std::sscanf(behind_name.c_str(), ") %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %ld %ld", &user, &system), 2);
  return user + system;
}

}  // namespace

TEST("device: requests run in a process of their own, ahead of their tokens, with two steps really in flight") {
  for (const int in_flight : {1, 2}) {
    for (const int chooses : {0, 1}) {
      DeviceWorld world({}, {{"DEVICE_IN_FLIGHT", std::to_string(in_flight)},
                             {"DEVICE_CHOOSES", std::to_string(chooses)},
                             {"DEVICE_LATE_MS", "1"}});
      world.load();
      CHECK(contains(world.info(), "\"backend\": \"tensorrt\""));
      CHECK(contains(world.info(), "\"device\": \"a model of a device\""));
      CHECK(contains(world.info(), "\"num_blocks\": 64"));
      CHECK(!contains(world.info(), "onnxruntime_version"));
      run_greedy_requests(world);
      world.end();
      CHECK_EQ(world.seen(0, "most_in_flight"), in_flight);
      CHECK_EQ(world.seen(0, "sources") > 0, in_flight == 2 && chooses == 1);
      CHECK_EQ(world.seen(0, "whole_rows") > 0, chooses == 0);
      if (in_flight == 1) CHECK_EQ(world.seen(0, "most_rows"), 4);
      CHECK_EQ(world.seen(0, "most_tokens"), 8);
      CHECK(has_no_child());
    }
  }
}

TEST("device: candidates that come from another process give what whole rows give") {
  std::map<DeviceWorld::Sequence, Ids> tokens;
  std::map<DeviceWorld::Sequence, std::vector<std::pair<std::int32_t, float>>> logprobs;
  for (const char* const candidates : {"0", "8"}) {
    DeviceWorld world({}, {{"DEVICE_CANDIDATES", candidates}});
    world.load();
    for (std::uint64_t id = 1; id <= 8; ++id) {
      precast_sampling_t sampling = DeviceWorld::greedy(9);
      sampling.num_logprobs = std::array{-1, 0, 3, 20}[id % 4];
      if (id > 4) {
        sampling.temperature = 3.0F;
        sampling.top_k = std::array{2U, 6U, 20U, 0U}[id % 4];
        sampling.seed = id;
      }
      world.submit(id, prompt(static_cast<std::int32_t>(id), 3 * id), sampling, 2);
    }
    world.wait(8);
    CHECK(world.errors.empty());
    world.end();
    CHECK(world.seen(0, "whole_rows") > 0);
    CHECK_EQ(world.seen(0, "candidate_rows") > 0, std::string(candidates) == "8");
    if (tokens.empty()) {
      tokens = world.tokens;
      logprobs = world.logprobs;
      CHECK_EQ(tokens.size(), 16U);
    }
    CHECK(world.tokens == tokens);
    CHECK_EQ(world.logprobs.size(), logprobs.size());
    for (const auto& [sequence, expected] : logprobs) {
      const auto& found = world.logprobs.at(sequence);
      CHECK_EQ(found.size(), expected.size());
      for (std::size_t i = 0; i < found.size(); ++i) {
        CHECK_EQ(found[i].first, expected[i].first);
        CHECK(std::abs(found[i].second - expected[i].second) < 1e-5F);
      }
    }
  }
}

TEST("device: a row without a largest logit ends its own request, and nobody else's") {
  DeviceWorld world({}, {{"DEVICE_NO_TOKEN", "5"}});
  world.load();
  for (std::uint64_t id = 1; id <= 4; ++id) {
    const Ids ids = id == 2 ? Ids{3, 5} : Ids{static_cast<std::int32_t>(id)};
    world.submit(id, ids, DeviceWorld::greedy(3));
  }
  world.wait(4);
  CHECK_EQ(world.errors.size(), 1U);
  CHECK(contains(world.errors.at(2), "NaN"));
  for (const std::int32_t id : {1, 3, 4}) {
    const Ids expected = device_output({id}, 3);
    CHECK(std::ranges::find(expected, 5) == expected.end());  // else this test would be of something else
    CHECK((world.tokens.at({static_cast<std::uint64_t>(id), 0}) == expected));
  }
}

TEST("device: three ranks meet, and the engine has the blocks that all of them have") {
  for (const DevicePlan& plan : {DevicePlan{.tensor_parallel_size = 3}, DevicePlan{.pipeline_parallel_size = 3}}) {
    DeviceWorld world(plan, {{"DEVICE_EXCHANGES", "60"}, {"DEVICE_BLOCKS", "40,30,50"}, {"DEVICE_LATE_MS", "1"}});
    world.load();
    CHECK(contains(world.info(), "\"num_blocks\": 30"));
    run_greedy_requests(world);
    CHECK_EQ(world.processes().size(), 3U);
    world.end();
    for (int rank = 0; rank < 3; ++rank) {
      CHECK_EQ(world.seen(rank, "world_size"), 3);
      CHECK_EQ(world.seen(rank, "most_in_flight"), 2);
    }
    CHECK(has_no_child());
  }
}

TEST("device: a rank whose results nobody reads may lag behind, but no further than the steps in flight") {
  // Only the last stage's first rank is waited for. The other one takes long for a step, while the engine could go on.
  DeviceWorld world({.pipeline_parallel_size = 2}, {{"DEVICE_HANGS", "0:is_done.5:10"}, {"DEVICE_LATE_MS", "1"}});
  world.load();
  run_greedy_requests(world);
  world.end();
  CHECK_EQ(world.seen(0, "most_in_flight"), 2);
  CHECK(has_no_child());
}

TEST("device: limits are those of the plan, which a warning says, and reach the ranks") {
  DeviceWorld world({.max_batch_size = 3, .max_num_tokens = 6});
  world.options.kv_cache_bytes = (std::uint64_t{1} << 40) + 5;
  world.options.max_seq_len = 48;
  world.load();
  CHECK(contains(world.info(), "\"max_batch_size\": 3"));
  CHECK(contains(world.info(), "\"max_num_tokens\": 6"));
  CHECK(contains(world.info(), "\"max_seq_len\": 48"));
  run_greedy_requests(world);
  world.end();
  CHECK_EQ(world.seen(0, "max_batch_size"), 3);
  CHECK_EQ(world.seen(0, "max_num_tokens"), 6);
  CHECK_EQ(world.seen(0, "max_seq_len"), 48);
  CHECK_EQ(world.seen(0, "kv_cache_bytes"), (1L << 40) + 5);
  const std::vector<std::string> lines = world.lines();
  const auto has = [&](const std::string& line) { return std::ranges::find(lines, line) != lines.end(); };
  CHECK(has("max_batch_size is 3 and not 4: the engine was built for no more"));
  CHECK(has("max_num_tokens is 6 and not 8: the engine was built for no more"));
}

TEST("device: what a rank writes is logged by lines, with its rank and process") {
  DeviceWorld world({.tensor_parallel_size = 2}, {{"DEVICE_WRITES", "gr\xc3\xbc\xc3\x9f dich"}});
  world.load();
  world.end();
  const auto processes = world.processes();
  const std::vector<std::string> lines = world.lines();
  for (int rank = 0; rank < 2; ++rank) {
    const std::string prefix = "rank " + std::to_string(rank) + " (process " + std::to_string(processes.at(rank)) + "): ";
    for (const char* const line : {"out: gr\xc3\xbc\xc3\x9f dich", "err: gr\xc3\xbc\xc3\x9f dich", "loaded on a model of a device"}) {
      CHECK_EQ(std::ranges::count(lines, prefix + line), 1);
    }
  }
}

TEST("device: a rank is out of the reach of Ctrl-C, and one that waits for work takes no processor") {
  DeviceWorld world;
  world.load();
  run_greedy_requests(world);
  CHECK(comes_true([&] { return !world.processes().empty(); }));
  const int process = world.processes().at(0);
  CHECK_EQ(::getpgid(process), process);
  CHECK(::getpgid(process) != ::getpgrp());
  // One that spins takes nearly all of it, even where the machine is busy a good part.
  const long before = used_ticks(process);
  const long own_before = used_ticks(::getpid());
  std::this_thread::sleep_for(std::chrono::milliseconds(600));
  const long most = ::sysconf(_SC_CLK_TCK) / 20;
  CHECK(used_ticks(process) - before <= most);
  CHECK(used_ticks(::getpid()) - own_before <= most);
}

TEST("device: the forward pass alone gives the row after each token, however many rows a step may have") {
  DeviceWorld world({.max_batch_size = 4, .max_num_tokens = 16});
  world.options.max_num_tokens = 16;
  precast_model_t* model = nullptr;
  CHECK_EQ(told(precast_model_new(world.path().c_str(), &world.options, &model)).first, "");
  for (const std::size_t length : {1, 4, 23}) {
    const Ids ids = prompt(5, length);
    std::vector<float> logits(ids.size() * device_vocab_size);
    CHECK_EQ(told(precast_model_logits(model, ids.data(), ids.size(), logits.data(), logits.size())).first, "");
    std::vector<float> expected;
    for (std::size_t end = 1; end <= ids.size(); ++end) {
      const std::vector<float> row = device_logits({ids.data(), end});
      expected.insert(expected.end(), row.begin(), row.end());
    }
    CHECK(logits == expected);
  }
  precast_model_delete(model);
  CHECK_EQ(world.seen(0, "most_rows"), 4);  // no more than the plan has sequences
  CHECK(has_no_child());
}

TEST("device: two engines in one process, each with ranks of its own") {
  DeviceWorld first;
  DeviceWorld second({.tensor_parallel_size = 2});
  first.load();
  second.load();
  run_greedy_requests(second);
  run_greedy_requests(first);
  first.end();
  second.submit(77, {1, 2, 3}, DeviceWorld::greedy(4));
  second.wait(1);
  CHECK((second.tokens.at({77, 0}) == device_output({1, 2, 3}, 4)));
  second.end();
  CHECK(has_no_child());
}

TEST("device: an engine for ONNX Runtime, or with a session of the caller's, starts no process, whatever Python there is") {
  // It comes as far as to ONNX Runtime, or with a session of the caller's, all the way.
  const TemporaryDirectory directory;
  directory.write("engine.json", manifest_text());
  directory.write("graph", "12345");
  directory.write("weights", "123456");
  precast_engine_options_t options;
  precast_engine_options_init(&options, sizeof options);
  options.python_path = "/nowhere/python";
  options.onnxruntime_path = "/nowhere/libonnxruntime.so";
  precast_engine_t* engine = nullptr;
  const std::string path = directory.path().string();
  CHECK(contains(told(precast_engine_new(path.c_str(), &options, &engine)).first, "ONNX Runtime at \"/nowhere/libonnxruntime.so\""));
  options.onnxruntime_path = nullptr;
  CountingTable counting;
  const precast_session_table_t table = counting.table();
  options.session = &table;
  CHECK_EQ(told(precast_engine_new(external_engine_directory().path().c_str(), &options, &engine)).first, "");
  CHECK(has_no_child());
  precast_engine_delete(engine);
  CHECK_EQ(counting.num_destroyed, 1);
}

}  // namespace precast::test
