// runtime/native/src/ranks: the processes of ranks, what they write, and how they end, without an engine.
#include "runtime/native/src/ranks/local/worker_processes.h"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <condition_variable>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "runtime/native/src/error.h"
#include "tests/native/check.h"
#include "tests/native/refusal.h"

namespace precast {
namespace {

using test::refusal;
using Clock = std::chrono::steady_clock;

// A process that does anything but what a worker does.
WorkerArguments arguments(std::size_t rank, const RankMemory& ranks) {
  WorkerArguments worker;
  worker.rank = rank;
  worker.rank_memory = worker.step_memory = ranks.memory().descriptor();
  return worker;
}

// A shell script that takes any arguments; removed at the end.
class Program {
 public:
  explicit Program(const std::string& script) {
    static int number = 0;
    path_ = std::filesystem::temp_directory_path() /
            ("precast-program-" + std::to_string(::getpid()) + "-" + std::to_string(number++));
    std::ofstream(path_) << "#!/bin/sh\n" << script << "\n";
    std::filesystem::permissions(path_, std::filesystem::perms::owner_all);
  }
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;
  ~Program() { std::filesystem::remove(path_); }

  std::string path() const { return path_.string(); }

 private:
  std::filesystem::path path_;
};

constexpr const char* endless = "exec sleep 1000";

template <typename Condition>
void wait_until(Condition&& holds) {
  for (const Clock::time_point start = Clock::now(); !holds();) {
    CHECK(Clock::now() - start < std::chrono::seconds(20));
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

void wait_until_failed(const RankMemory& ranks) {
  wait_until([&] { return ranks.has_failed(); });
}

std::string prefix(pid_t id) { return "rank 1 (process " + std::to_string(id) + ")"; }

// Keeps what it is told; its writes can be held up.
class KeptLog {
 public:
  Log log() {
    return Log([this](LogLevel level, const std::string& text) {
      std::unique_lock lock(mutex_);
      let_through_.wait(lock, [&] { return !is_held_; });
      lines_.emplace_back(level, text);
    });
  }

  std::vector<std::pair<LogLevel, std::string>> lines() {
    const std::lock_guard lock(mutex_);
    return lines_;
  }

  void hold(bool is_held) {
    {
      const std::lock_guard lock(mutex_);
      is_held_ = is_held;
    }
    let_through_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable let_through_;
  bool is_held_ = false;
  std::vector<std::pair<LogLevel, std::string>> lines_;
};

// What a rank's process said until it ended, and why all ranks failed then.
struct Ended {
  pid_t id = 0;
  std::string failure;
  std::vector<std::pair<LogLevel, std::string>> lines;
};

Ended run_to_its_end(const std::string& script) {
  const auto ranks = RankMemory::create({.tensor_parallel_size = 2});
  const Program program(script);
  KeptLog kept;
  Ended ended;
  {
    const WorkerProcesses processes({program.path()}, {arguments(1, *ranks)}, ranks, kept.log());
    ended.id = processes.process_ids().at(0);
    wait_until_failed(*ranks);
  }
  ended.failure = ranks->failure();
  ended.lines = kept.lines();
  return ended;
}

}  // namespace

TEST("workers: a process that ends is a failure that names its rank, and none is left behind") {
  for (const auto& [program, words] : {std::pair{"/bin/false", "ended with status 1"}, {"/bin/true", "ended with status 0"}}) {
    const auto ranks = RankMemory::create({.tensor_parallel_size = 2});
    std::vector<pid_t> ids;
    {
      const WorkerProcesses processes({program}, {arguments(1, *ranks)}, ranks, {});
      ids = processes.process_ids();
      wait_until_failed(*ranks);
    }
    CHECK_EQ(ranks->failure(), prefix(ids.at(0)) + " " + words);
    CHECK_EQ(::waitpid(ids[0], nullptr, WNOHANG), -1);  // it was waited for
  }
}

TEST("workers: a process that is killed is named with its signal, and those that go on are killed at the end") {
  const auto ranks = RankMemory::create({.tensor_parallel_size = 3});
  const Program program(endless);
  std::vector<pid_t> ids;
  {
    const WorkerProcesses processes({program.path()}, {arguments(1, *ranks), arguments(2, *ranks)}, ranks, {});
    ids = processes.process_ids();
    ::kill(ids.at(0), SIGKILL);
    wait_until_failed(*ranks);
    CHECK_EQ(ranks->failure(), prefix(ids[0]) + " was killed by SIGKILL");
  }
  for (const pid_t id : ids) CHECK_EQ(::waitpid(id, nullptr, WNOHANG), -1);
}

TEST("workers: a program that does not exist is said so, and the path is looked for where it should be") {
  const auto ranks = RankMemory::create({.tensor_parallel_size = 2});
  CHECK(refusal([&] { WorkerProcesses({"/nowhere/worker"}, {arguments(1, *ranks)}, ranks, {}); }).find("cannot start rank 1") == 0);
  CHECK(refusal([] { find_worker("/nowhere/worker"); }).find("No such file or directory") != std::string::npos);
  CHECK_EQ(find_worker("/bin/true"), "/bin/true");
  CHECK_EQ(refusal([] { WorkerArguments::from_strings({"1", "2"}); }), "precast-worker is started by precast, not by hand");
}

TEST("workers: every argument of a worker arrives, whatever is in it") {
  const WorkerArguments given{.rank = 3,
                              .parent_pid = 4'194'304,
                              .rank_memory = 5,
                              .step_memory = 6,
                              .engine_dir = "/a b/\xc3\xa9\n",
                              .onnxruntime_path = "",
                              .kernel_level = "avx2",
                              .num_threads = 4'000'000'000U,
                              .num_blocks = 2'000'000'000,
                              .device = {.kv_cache_bytes = 18'000'000'000'000'000'000U,
                                         .max_batch_size = 7,
                                         .max_num_tokens = 8,
                                         .max_seq_len = 4'294'967'295U},
                              .rank_timeout = std::chrono::milliseconds(60'000),
                              .spins = 9,
                              .is_read = true};
  const std::vector<std::string> texts = given.to_strings();
  const WorkerArguments read = WorkerArguments::from_strings(texts);
  CHECK_EQ(read.rank, given.rank);
  CHECK_EQ(read.parent_pid, given.parent_pid);
  CHECK_EQ(read.rank_memory, given.rank_memory);
  CHECK_EQ(read.step_memory, given.step_memory);
  CHECK_EQ(read.engine_dir, given.engine_dir);
  CHECK_EQ(read.onnxruntime_path, given.onnxruntime_path);
  CHECK_EQ(read.kernel_level, given.kernel_level);
  CHECK_EQ(read.num_threads, given.num_threads);
  CHECK_EQ(read.num_blocks, given.num_blocks);
  CHECK_EQ(read.device.kv_cache_bytes, given.device.kv_cache_bytes);
  CHECK_EQ(read.device.max_batch_size, given.device.max_batch_size);
  CHECK_EQ(read.device.max_num_tokens, given.device.max_num_tokens);
  CHECK_EQ(read.device.max_seq_len, given.device.max_seq_len);
  CHECK(read.rank_timeout == given.rank_timeout);
  CHECK_EQ(read.spins, given.spins);
  CHECK(read.is_read);
  CHECK(!WorkerArguments::from_strings(WorkerArguments{}.to_strings()).is_read);
  for (const char* const wrong : {"", "x", "1x", "99999999999999999999999"}) {
    std::vector<std::string> others = texts;
    others[12] = wrong;
    CHECK_EQ(refusal([&] { WorkerArguments::from_strings(others); }), "precast-worker is started by precast, not by hand");
  }
}

TEST("workers: a process has the two memories open, and nothing that this program has") {
  const std::string mine = "/dev/zero";
  // As who does not think of other processes opens a file; away from the numbers that the memories get.
  const int low = ::open(mine.c_str(), O_RDONLY);
  const int descriptor = ::fcntl(low, F_DUPFD, 100);
  ::close(low);
  CHECK(descriptor >= 100);
  const Ended ended = run_to_its_end("for fd in /proc/$$/fd/*; do readlink $fd; done; exit 3");
  ::close(descriptor);
  int num_memories = 0;
  for (const auto& [level, line] : ended.lines) {
    CHECK(line.find(mine) == std::string::npos);
    num_memories += line.find("/memfd:precast-ranks") != std::string::npos;
  }
  CHECK_EQ(num_memories, 2);
}

TEST("workers: a program without a slash is looked for on the PATH, and one that is not there says how to choose another") {
  const auto ranks = RankMemory::create({.tensor_parallel_size = 2});
  {
    const WorkerProcesses processes({.path = "false"}, {arguments(1, *ranks)}, ranks, {});
    wait_until_failed(*ranks);
  }
  CHECK(ranks->failure().ends_with("ended with status 1"));
  const WorkerProgram missing{.path = "no-such-program-anywhere", .choice = "set THIS"};
  CHECK_EQ(refusal([&] { WorkerProcesses(missing, {arguments(1, *ranks)}, ranks, {}); }),
           "cannot start rank 1 with \"no-such-program-anywhere\": No such file or directory: set THIS");
}

TEST("workers: what a process writes goes to the log, by lines, with its rank; what it wrote last says why it ended") {
  const Ended ended = run_to_its_end(R"(printf '\0362all is \377 well\n'; echo out; printf 'no end' >&2; exit 3)");
  CHECK_EQ(ended.failure, prefix(ended.id) + " ended with status 3; its last words: no end");
  CHECK_EQ(ended.lines.size(), 3U);
  CHECK(ended.lines[0] == std::pair(LogLevel::warning, prefix(ended.id) + ": all is ? well"));
  CHECK(ended.lines[1] == std::pair(LogLevel::warning, prefix(ended.id) + ": out"));
  CHECK(ended.lines[2] == std::pair(LogLevel::warning, prefix(ended.id) + ": no end"));
}

TEST("workers: a message of a worker's log is no last word, and keeps its level") {
  const Ended ended = run_to_its_end(R"(printf '\0361loaded\n\0363lost\n'; exit 4)");
  CHECK_EQ(ended.failure, prefix(ended.id) + " ended with status 4");
  CHECK(ended.lines == (std::vector{std::pair(LogLevel::info, prefix(ended.id) + ": loaded"),
                                    std::pair(LogLevel::error, prefix(ended.id) + ": lost")}));
}

TEST("workers: a log that is slow holds nobody up, and hears how much it has missed") {
  const auto ranks = RankMemory::create({.tensor_parallel_size = 2});
  const Program program("seq 1 20000; exit 5");
  KeptLog kept;
  kept.hold(true);
  {
    const WorkerProcesses processes({program.path()}, {arguments(1, *ranks)}, ranks, kept.log());
    wait_until_failed(*ranks);  // though the log has not let one line through
    CHECK(kept.lines().empty());
    kept.hold(false);
  }
  const auto lines = kept.lines();
  CHECK(lines.size() > 1000);
  CHECK(lines.size() < 2000);
  CHECK(lines.front().second.ends_with(": 1"));
  CHECK(lines.back().second.ends_with("lines of the ranks' output were left out: they came too fast"));
}

TEST("workers: messages survive the way through a process's output") {
  for (const LogLevel level : {LogLevel::info, LogLevel::warning, LogLevel::error}) {
    std::string line = encode_message(level, "two\nlines of rank \xc3\xa9");
    CHECK_EQ(line.back(), '\n');
    line.pop_back();
    const OutputLine decoded = decode_line(line);
    CHECK(decoded.level == level);
    CHECK(decoded.is_message);
    CHECK_EQ(decoded.text, "two lines of rank \xc3\xa9");
  }
  CHECK_EQ(encode_message(LogLevel::info, std::string(10'000, 'x')).size(), 4096U);
  CHECK_EQ(decode_line("\x1e").text, "\x1e");
  CHECK_EQ(decode_line("\x1e" "9x").text, "\x1e" "9x");
  CHECK_EQ(decode_line("a\r").text, "a");
  CHECK_EQ(decode_line("").text, "");
  std::vector<std::string> lines;
  const auto take = [&](std::string_view line) { lines.emplace_back(line); };
  LineSplitter splitter;
  for (const char* bytes : {"a", "b\n\nc\n", "d"}) splitter.add(bytes, take);
  splitter.flush(take);
  splitter.flush(take);
  CHECK(lines == (std::vector<std::string>{"ab", "c", "d"}));
  splitter.add(std::string(5000, 'x'), take);
  CHECK_EQ(lines.back().size(), 4096U);
}

}  // namespace precast
