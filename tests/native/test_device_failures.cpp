// runtime/native/src/ranks/device: what goes wrong with engines whose ranks run on devices, and what is said of it.
#include <fcntl.h>
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "tests/native/check.h"
#include "tests/native/device_worker/device_model.h"
#include "tests/native/device_world.h"
#include "tests/native/waiting.h"

extern char** environ;

namespace precast::test {
namespace {

using Clock = std::chrono::steady_clock;

constexpr const char* python_choice = "set PRECAST_PYTHON or the option python_path to a Python that has "
                                      "precast[tensorrt-runtime] or precast[cuda-runtime]";

/// Why an engine cannot be loaded. No process is left.
std::pair<std::string, precast_error_code_t> refusal_of(DeviceWorld& world) {
  const auto said = told(world.try_load());
  CHECK(world.engine == nullptr);
  CHECK(has_no_child());
  return said;
}

/// Requests that run at once and one that comes later, on a loaded engine that fails: what all of them are told.
std::string failure_of(DeviceWorld& world) {
  for (std::uint64_t id = 1; id <= 5; ++id) world.submit(id, {static_cast<std::int32_t>(id), 5}, DeviceWorld::greedy(20));
  world.wait(5);
  world.submit(6, {7}, DeviceWorld::greedy(2));
  world.wait(1);
  CHECK_EQ(world.errors.size(), 6U);
  for (const auto& [id, code] : world.codes) CHECK_EQ(code, PRECAST_ERROR_RANK_FAILED);
  for (const auto& [id, error] : world.errors) CHECK_EQ(error, world.errors.at(6));
  const Clock::time_point start = Clock::now();
  world.end();
  CHECK(Clock::now() - start < std::chrono::seconds(5));
  CHECK(has_no_child());
  return world.errors.at(6);
}

/// "rank 0 (process 17)"
std::string name_of(DeviceWorld& world, int rank) {
  return "rank " + std::to_string(rank) + " (process " + std::to_string(world.processes().at(rank)) + ")";
}

}  // namespace

TEST("device failures: a Python that is not there is named, with what to set") {
  {
    DeviceWorld world;
    world.options.python_path = "/nowhere/python";
    CHECK(refusal_of(world) == (std::pair("cannot start rank 0 with \"/nowhere/python\": No such file or directory: " +
                                              std::string(python_choice),
                                          precast_error_code_t{PRECAST_ERROR_NOT_FOUND})));
  }
  {
    DeviceWorld world({}, {{"PRECAST_PYTHON", "/from/the/variable"}});
    world.options.python_path = nullptr;
    CHECK(refusal_of(world).first.starts_with("cannot start rank 0 with \"/from/the/variable\": No such file"));
    world.options.python_path = "/from/the/option";
    CHECK(refusal_of(world).first.starts_with("cannot start rank 0 with \"/from/the/option\": No such file"));
  }
  {
    DeviceWorld world({}, {{"PRECAST_PYTHON", ""}, {"PATH", "/nowhere"}});
    world.options.python_path = nullptr;
    CHECK(refusal_of(world).first.starts_with("cannot start rank 0 with \"python3\": No such file"));
  }
  {
    DeviceWorld world;
    const std::string engine = world.path() + "/engine.json";
    world.options.python_path = engine.c_str();
    CHECK(refusal_of(world) == (std::pair("cannot start rank 0 with \"" + engine + "\": Permission denied: " + python_choice,
                                          precast_error_code_t{PRECAST_ERROR_IO})));
  }
}

TEST("device failures: python3 of the PATH is what runs where nobody says which") {
  const TemporaryDirectory bin;
  std::filesystem::create_symlink(device_worker(), bin.path() / "python3");
  DeviceWorld world({}, {{"PRECAST_PYTHON", ""}, {"PATH", bin.path().string()}});
  world.options.python_path = nullptr;
  world.load();
  world.submit(1, {4}, DeviceWorld::greedy(3));
  world.wait(1);
  CHECK((world.tokens.at({1, 0}) == device_output({4}, 3)));
}

TEST("device failures: a Python without what it needs is told from its last words") {
  const TemporaryDirectory bin;
  const std::string python = bin.write("python", "#!/bin/sh\necho \"ModuleNotFoundError: No module named 'precast'\" >&2\n"
                                                 "exit 1\n").string();
  std::filesystem::permissions(python, std::filesystem::perms::owner_all);
  DeviceWorld world;
  world.options.python_path = python.c_str();
  const auto [text, code] = refusal_of(world);
  CHECK_EQ(code, PRECAST_ERROR_RANK_FAILED);
  CHECK(text.starts_with("rank 0 (process "));
  CHECK(text.ends_with(") ended with status 1; its last words: ModuleNotFoundError: No module named 'precast'; ranks run "
                       "with the Python \"" + python + "\": to choose another one, " + python_choice));
}

TEST("device failures: what a rank says that it cannot load is what the caller hears, also where others wait for it") {
  for (const int world_size : {1, 3}) {
    for (int rank = 0; rank < world_size; ++rank) {
      DeviceWorld world({.tensor_parallel_size = world_size},
                        {{"DEVICE_FAILS", std::to_string(rank) + ":create:7"}, {"DEVICE_EXCHANGES", world_size == 1 ? "0" : "5"}});
      const auto [text, code] = refusal_of(world);
      CHECK_EQ(text, "rank " + std::to_string(rank) + ": the device says no in create");
      CHECK_EQ(code, PRECAST_ERROR_RESOURCE_EXHAUSTED);
    }
  }
}

TEST("device failures: a rank that ends while it loads, and one that stops") {
  {
    DeviceWorld world({.tensor_parallel_size = 3}, {{"DEVICE_EXITS", "2:create:9"}, {"DEVICE_EXCHANGES", "5"}});
    const auto [text, code] = refusal_of(world);
    CHECK(text.starts_with("rank 2 (process "));
    CHECK(contains(text, ") ended with status 9"));
    CHECK_EQ(code, PRECAST_ERROR_RANK_FAILED);
  }
  DeviceWorld world({.tensor_parallel_size = 2}, {{"DEVICE_STOPS", "1:create:0"}});
  world.options.rank_timeout_s = 1;
  const auto [text, code] = refusal_of(world);
  CHECK(text.starts_with("rank 1 has made no progress for 1 s, while the engine waited for it to load"));
  CHECK_EQ(code, PRECAST_ERROR_RANK_FAILED);
}

TEST("device failures: a rank that loads for longer than the timeout is not hung") {
  DeviceWorld world({}, {{"DEVICE_HANGS", "0:create:1500"}});
  world.options.rank_timeout_s = 1;
  world.load();
}

TEST("device failures: ranks that do not fit together") {
  {
    DeviceWorld world({.tensor_parallel_size = 2}, {{"DEVICE_IN_FLIGHT", "2,1"}});
    CHECK_EQ(refusal_of(world).first, "rank 1 has max_in_flight 1 and chooses_tokens 1, and rank 0 has max_in_flight 2 and "
                                      "chooses_tokens 1: all ranks must do alike");
  }
  DeviceWorld world({}, {{"DEVICE_BLOCKS", "0"}});
  CHECK_EQ(refusal_of(world).first, "rank 0: the session has num_blocks 0; it needs 1 to 1073741823");
}

TEST("device failures: a rank that ends in the middle of a step fails all requests, now and later") {
  for (const auto& [plan, rank] : {std::pair{DevicePlan{}, 0}, {DevicePlan{.tensor_parallel_size = 3}, 1},
                                   {DevicePlan{.pipeline_parallel_size = 2}, 0}, {DevicePlan{.pipeline_parallel_size = 2}, 1}}) {
    for (const char* const function : {"enqueue", "is_done", "collect"}) {
      DeviceWorld world(plan, {{"DEVICE_EXITS", std::to_string(rank) + ":" + function + ".4:7"}});
      world.load();
      const std::string failure = failure_of(world);
      CHECK_EQ(failure, name_of(world, rank) + " ended with status 7");
    }
  }
}

TEST("device failures: an error of the device fails all requests with its words") {
  for (const char* const function : {"enqueue", "is_done", "collect"}) {
    DeviceWorld world({.tensor_parallel_size = 2}, {{"DEVICE_FAILS", std::string("1:") + function + ".3:3"}});
    world.load();
    CHECK_EQ(failure_of(world), std::string("rank 1: the device says no in ") + function + ".3");
  }
}

TEST("device failures: a device that computes for ever is given up") {
  for (const char* const place : {"0:is_done.3:100000", "0:collect.3:100000"}) {
    DeviceWorld world({}, {{"DEVICE_HANGS", place}});
    world.options.rank_timeout_s = 1;
    world.load();
    CHECK_EQ(failure_of(world), "rank 0 has made no progress for 1 s, while the engine waited for it to compute its part of "
                                "a step");
  }
}

TEST("device failures: handing over a step may take longer than the timeout, as kernels may have to be compiled") {
  DeviceWorld world({.tensor_parallel_size = 2}, {{"DEVICE_HANGS", "*:enqueue.2:2500"}});
  world.options.rank_timeout_s = 1;
  world.load();
  world.submit(1, {4, 5}, DeviceWorld::greedy(6));
  world.wait(1);
  CHECK((world.tokens.at({1, 0}) == device_output({4, 5}, 6)));
}

TEST("device failures: a device that waits for a rank which still compiles is not hung, and that rank is, if it never ends") {
  {
    DeviceWorld world({.tensor_parallel_size = 2}, {{"DEVICE_HANGS", "1:enqueue.1:2500"}, {"DEVICE_LATE_MS", "3000,0"}});
    world.options.rank_timeout_s = 1;
    world.load();
    world.submit(1, {4, 5}, DeviceWorld::greedy(1));
    world.wait(1);
    CHECK((world.tokens.at({1, 0}) == device_output({4, 5}, 1)));
  }
  DeviceWorld world({.tensor_parallel_size = 2}, {{"DEVICE_STOPS", "1:enqueue.3:0"}, {"DEVICE_LATE_MS", "1,0"}});
  world.options.rank_timeout_s = 1;
  world.load();
  CHECK_EQ(failure_of(world), "rank 1 has made no progress for 1 s, while the engine waited for it to compute its part of a "
                              "step");
}

TEST("device failures: a rank that is killed while nobody waits for it is found out by the next request") {
  DeviceWorld world({.tensor_parallel_size = 2});
  world.load();
  CHECK(comes_true([&] { return world.processes().size() == 2; }));
  ::kill(world.processes().at(1), SIGKILL);
  CHECK_EQ(failure_of(world), name_of(world, 1) + " was killed by SIGKILL");
}

TEST("device failures: an engine that ends while its ranks compute leaves no process") {
  DeviceWorld world({.tensor_parallel_size = 2}, {{"DEVICE_LATE_MS", "20"}});
  world.load();
  for (std::uint64_t id = 1; id <= 6; ++id) world.submit(id, {5}, DeviceWorld::greedy(50));
  CHECK(comes_true([&] {
    char* text = nullptr;
    CHECK_EQ(told(precast_engine_stats(world.engine, &text)).first, "");
    const std::string stats = text;
    precast_string_delete(text);
    return !contains(stats, "\"steps\": 0,");
  }));
  const Clock::time_point start = Clock::now();
  world.end();
  CHECK(Clock::now() - start < std::chrono::milliseconds(1400));  // else they had to be killed
  CHECK_EQ(world.seen(0, "world_size"), 2);                       // they ended in order
  CHECK_EQ(world.seen(1, "world_size"), 2);
  CHECK(has_no_child());
}

TEST("device failures: a plan that has no room for a token of each sequence is refused") {
  DeviceWorld world({.max_batch_size = 64, .max_num_tokens = 3});
  CHECK_EQ(refusal_of(world).first, "max_num_tokens 3 is less than max_batch_size 4: a step must have room for one token of "
                                    "every running sequence");
}

TEST("device failures: options of the CPU are refused, and so is MPI") {
  {
    DeviceWorld world;
    world.options.num_threads = 2;
    const auto [text, code] = refusal_of(world);
    CHECK_EQ(text, world.path() + ": num_threads and kernel_level are of ONNX Runtime on the CPU, and this engine runs with "
                                  "tensorrt: leave them out");
    CHECK_EQ(code, PRECAST_ERROR_INVALID_ARGUMENT);
    world.options.num_threads = 0;
    world.options.kernel_level = "portable";
    CHECK_EQ(refusal_of(world).first, text);
  }
  DeviceWorld world({}, {{"PRECAST_MPI", "/somewhere/libprecast_mpi.so"}});
  const auto [text, code] = refusal_of(world);
  CHECK_EQ(text, world.path() + ": an engine for the backend tensorrt runs on one host, and PRECAST_MPI is set: load it "
                                "without `precast launch`");
  CHECK_EQ(code, PRECAST_ERROR_UNSUPPORTED_ENGINE);
}

TEST("device failures: ranks end with the program that has loaded the engine, however that ends") {
  ::prctl(PR_SET_CHILD_SUBREAPER, 1);  // its ranks are this process's children then
  const DeviceWorld world({.tensor_parallel_size = 2});
  std::array<int, 2> output{};
  CHECK_EQ(::pipe2(output.data(), O_CLOEXEC), 0);
  posix_spawn_file_actions_t files;
  ::posix_spawn_file_actions_init(&files);
  ::posix_spawn_file_actions_adddup2(&files, output[1], STDOUT_FILENO);
  std::string program = device_worker();
  std::string option = "--engine";
  std::string directory = world.path();
  std::array<char*, 4> arguments{program.data(), option.data(), directory.data(), nullptr};
  pid_t engine = -1;
  CHECK_EQ(::posix_spawn(&engine, program.c_str(), &files, nullptr, arguments.data(), environ), 0);
  ::posix_spawn_file_actions_destroy(&files);
  ::close(output[1]);
  std::vector<pid_t> ranks;
  FILE* const lines = ::fdopen(output[0], "r");
  for (std::array<char, 1000> line{}; std::fgets(line.data(), line.size(), lines) != nullptr;) {
    int rank = 0;
    int process = 0;
    if (std::sscanf(line.data(), "rank %d (process %d): loaded on", &rank, &process) == 2) ranks.push_back(process);
    if (std::string(line.data()) == "running\n") break;
  }
  CHECK_EQ(ranks.size(), 2U);
  ::kill(engine, SIGKILL);
  CHECK_EQ(::waitpid(engine, nullptr, 0), engine);
  for (const pid_t rank : ranks) {
    int status = 0;
    CHECK(comes_true([&] { return ::waitpid(rank, &status, WNOHANG) == rank; }));
    CHECK(WIFEXITED(status));
    CHECK_EQ(WEXITSTATUS(status), 1);
  }
  std::fclose(lines);
  ::prctl(PR_SET_CHILD_SUBREAPER, 0);
  CHECK(has_no_child());
}

TEST("device failures: precast_worker_run says what is wrong with its arguments") {
  precast_session_table_t table{};
  table.struct_size = sizeof table;
  table.version = 1;
  std::int32_t status = 0;
  CHECK_EQ(told(precast_worker_run(nullptr, 0, nullptr, &status)).first, "session is NULL");
  CHECK_EQ(told(precast_worker_run(nullptr, 0, &table, nullptr)).first, "exit_status is NULL");
  CHECK_EQ(told(precast_worker_run(nullptr, 3, &table, &status)).first, "arguments is NULL");
  const char* const arguments[] = {"1", "2"};
  const auto [text, code] = told(precast_worker_run(arguments, 2, &table, &status));
  CHECK_EQ(text, "precast-worker is started by precast, not by hand");
  CHECK_EQ(code, PRECAST_ERROR_INVALID_ARGUMENT);
}

}  // namespace precast::test
