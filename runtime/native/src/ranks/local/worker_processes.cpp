#include "runtime/native/src/ranks/local/worker_processes.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <utility>

#include "runtime/native/src/concat.h"
#include "runtime/native/src/error.h"

extern char** environ;

namespace precast {
namespace {

using Clock = std::chrono::steady_clock;

constexpr const char* path_variable = "PRECAST_WORKER";
constexpr const char* program_name = "precast-worker";
constexpr int first_inherited_fd = 3;  // of the two memories
constexpr std::chrono::milliseconds patience{1500};

bool is_program(const std::filesystem::path& path) { return ::access(path.c_str(), X_OK) == 0; }

std::string describe_end(const siginfo_t& info) {
  if (info.si_code == CLD_EXITED) return concat("ended with status ", info.si_status);
  const char* const name = sigabbrev_np(info.si_status);
  return concat("was killed by SIG", name != nullptr ? name : "?");
}

/// posix_spawn's two kinds of settings, freed at the end.
struct SpawnSettings {
  posix_spawn_file_actions_t files;
  posix_spawnattr_t attributes;

  SpawnSettings() {
    ::posix_spawn_file_actions_init(&files);
    ::posix_spawnattr_init(&attributes);
  }
  ~SpawnSettings() {
    ::posix_spawn_file_actions_destroy(&files);
    ::posix_spawnattr_destroy(&attributes);
  }
  SpawnSettings(const SpawnSettings&) = delete;
  SpawnSettings& operator=(const SpawnSettings&) = delete;
};

}  // namespace

std::string find_worker(const std::string& option) {
  const char* const variable = std::getenv(path_variable);
  for (const std::string& named : {option, std::string(variable != nullptr ? variable : "")}) {
    if (named.empty()) continue;
    if (is_program(named)) return named;
    throw Error(ErrorCode::not_found, concat("precast-worker, which runs the engine's other ranks, cannot be run at ",
                                             quote(named), ": ", system_message(errno)));
  }
  static const char marker = 0;
  Dl_info info{};
  const bool is_known = ::dladdr(&marker, &info) != 0 && info.dli_fname != nullptr;
  const std::filesystem::path here = is_known ? std::filesystem::path(info.dli_fname).parent_path() : "";
  for (const std::filesystem::path& candidate : {here / program_name, here / ".." / "bin" / program_name}) {
    if (is_program(candidate)) return candidate.string();
  }
  throw Error(ErrorCode::not_found, concat("precast-worker, which runs the engine's other ranks, is neither in ",
                                           quote(here.string()), " nor in ../bin from there: set ", path_variable,
                                           " or the option worker_path to its path"));
}

WorkerProcesses::WorkerProcesses(const WorkerProgram& program, const std::vector<WorkerArguments>& workers,
                                 std::shared_ptr<RankMemory> ranks, const Log& log)
    : ranks_(std::move(ranks)), log_(log ? std::make_unique<LogQueue>(log) : nullptr), wake_fd_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  if (wake_fd_ < 0) throw Error(ErrorCode::io, concat("cannot watch worker processes: ", system_message(errno)));
  try {
    for (const WorkerArguments& worker : workers) start(program, worker);
    watcher_ = std::thread(&WorkerProcesses::watch, this);
  } catch (...) {
    kill_all();
    ::close(wake_fd_);
    throw;
  }
}

WorkerProcesses::~WorkerProcesses() {
  expect_end();
  const Clock::time_point deadline = Clock::now() + patience;
  const auto has_ended = [](const Process& process) {
    pollfd watched{.fd = process.pidfd, .events = POLLIN, .revents = 0};
    return ::poll(&watched, 1, 0) > 0;
  };
  while (!std::ranges::all_of(processes_, has_ended) && Clock::now() < deadline) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  stops_ = true;
  const std::uint64_t one = 1;
  if (::write(wake_fd_, &one, sizeof one) < 0) std::abort();  // an eventfd of our own takes a number
  watcher_.join();
  kill_all();
  ::close(wake_fd_);
}

void WorkerProcesses::start(const WorkerProgram& program, const WorkerArguments& worker) {
  WorkerArguments inherited = worker;
  inherited.parent_pid = ::getpid();
  inherited.is_read = log_ != nullptr;
  SpawnSettings settings;
  // First out of the way of the numbers that they shall have, then there, where they are not closed.
  const int rank_memory = ::fcntl(worker.rank_memory, F_DUPFD_CLOEXEC, first_inherited_fd + 2);
  const int step_memory = ::fcntl(worker.step_memory, F_DUPFD_CLOEXEC, first_inherited_fd + 2);
  if (rank_memory < 0 || step_memory < 0) {
    const int error = errno;
    if (rank_memory >= 0) ::close(rank_memory);
    throw Error(ErrorCode::io, concat("cannot hand memory to rank ", worker.rank, ": ", system_message(error)));
  }
  inherited.rank_memory = first_inherited_fd;
  inherited.step_memory = first_inherited_fd + 1;
  int output[2] = {-1, -1};
  if (log_ != nullptr) {
    // It does not block where it is written: a rank must not wait for who reads a log.
    if (::pipe2(output, O_CLOEXEC | O_NONBLOCK) != 0) {
      const int error = errno;
      ::close(rank_memory);
      ::close(step_memory);
      throw Error(ErrorCode::io, concat("cannot read what rank ", worker.rank, " writes: ", system_message(error)));
    }
    ::posix_spawn_file_actions_adddup2(&settings.files, output[1], STDOUT_FILENO);
    ::posix_spawn_file_actions_adddup2(&settings.files, output[1], STDERR_FILENO);
  }
  // After the pipe, whose number may be one of these: nothing says that 0, 1 and 2 are open here.
  ::posix_spawn_file_actions_adddup2(&settings.files, rank_memory, inherited.rank_memory);
  ::posix_spawn_file_actions_adddup2(&settings.files, step_memory, inherited.step_memory);
  // Nothing else: what the user's program has open, and did not think of workers, would stay open in them.
  ::posix_spawn_file_actions_addclosefrom_np(&settings.files, first_inherited_fd + 2);
  ::posix_spawn_file_actions_addopen(&settings.files, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  // A process group of its own: a Ctrl-C is for the user's program, which ends its workers in order. No signal blocked.
  sigset_t no_signals;
  ::sigemptyset(&no_signals);
  ::posix_spawnattr_setsigmask(&settings.attributes, &no_signals);
  ::posix_spawnattr_setpgroup(&settings.attributes, 0);
  ::posix_spawnattr_setflags(&settings.attributes, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK);

  std::vector<std::string> texts = inherited.to_strings();
  texts.insert(texts.begin(), program.first_arguments.begin(), program.first_arguments.end());
  texts.insert(texts.begin(), program.path);
  std::vector<char*> arguments;
  for (std::string& text : texts) arguments.push_back(text.data());
  arguments.push_back(nullptr);
  Process process{.rank = worker.rank, .output = output[0]};
  const int error =
      ::posix_spawnp(&process.pid, program.path.c_str(), &settings.files, &settings.attributes, arguments.data(), environ);
  ::close(rank_memory);
  ::close(step_memory);
  if (output[1] >= 0) ::close(output[1]);
  if (error != 0) {
    if (output[0] >= 0) ::close(output[0]);
    const std::string choice = program.choice.empty() ? "" : concat(": ", program.choice);
    throw Error(error == ENOENT ? ErrorCode::not_found : ErrorCode::io,
                concat("cannot start rank ", worker.rank, " with ", quote(program.path), ": ", system_message(error), choice));
  }
  process.pidfd = static_cast<int>(::syscall(SYS_pidfd_open, process.pid, 0));
  processes_.push_back(process);
  if (process.pidfd < 0) {
    throw Error(ErrorCode::io, concat("cannot watch the process of rank ", worker.rank, ": ", system_message(errno)));
  }
}

void WorkerProcesses::kill_all() noexcept {
  for (Process& process : processes_) {
    if (!process.has_ended) {
      ::kill(process.pid, SIGKILL);
      ::waitpid(process.pid, nullptr, 0);
      process.has_ended = true;
    }
    if (process.pidfd >= 0) ::close(process.pidfd);
    if (process.output >= 0) ::close(process.output);
    process.pidfd = process.output = -1;
  }
}

void WorkerProcesses::watch() {
  while (!stops_) {
    std::vector<pollfd> watched{{.fd = wake_fd_, .events = POLLIN, .revents = 0}};
    for (const Process& process : processes_) {
      watched.push_back({.fd = process.has_ended ? -1 : process.pidfd, .events = POLLIN, .revents = 0});
      watched.push_back({.fd = process.output, .events = POLLIN, .revents = 0});
    }
    if (::poll(watched.data(), watched.size(), -1) < 0) continue;  // a signal
    for (std::size_t i = 0; i < processes_.size(); ++i) {
      if (watched[2 * i + 2].revents != 0) read_output(processes_[i]);
      if (watched[2 * i + 1].revents != 0) reap(processes_[i]);
    }
  }
  for (Process& process : processes_) read_output(process);
}

void WorkerProcesses::read_output(Process& process) {
  const auto take = [&](std::string_view bytes) {
    OutputLine line = decode_line(bytes);
    if (!line.is_message) process.last_words = line.text;
    log_->add(line.level, concat("rank ", process.rank, " (process ", process.pid, "): ", line.text));
  };
  // Not for ever, where it writes as fast as it is read: other ranks may end meanwhile.
  std::array<char, 16 * 1024> bytes;
  for (int turn = 0; turn < 16 && process.output >= 0; ++turn) {
    const ssize_t count = ::read(process.output, bytes.data(), bytes.size());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0 && errno == EAGAIN) return;
    if (count > 0) {
      process.lines.add({bytes.data(), static_cast<std::size_t>(count)}, take);
      continue;
    }
    process.lines.flush(take);
    ::close(std::exchange(process.output, -1));
  }
}

void WorkerProcesses::reap(Process& process) {
  siginfo_t info{};
  const bool is_known = ::waitid(P_PID, static_cast<id_t>(process.pid), &info, WEXITED) == 0;
  process.has_ended = true;
  read_output(process);
  if (ends_are_expected_) return;
  const std::string words = process.last_words.empty() ? "" : concat("; its last words: ", process.last_words);
  ranks_->fail(ranks_->watcher(), concat("rank ", process.rank, " (process ", process.pid, ") ",
                                         is_known ? describe_end(info) : "has ended", words));
}

std::vector<pid_t> WorkerProcesses::process_ids() const {
  std::vector<pid_t> ids;
  for (const Process& process : processes_) ids.push_back(process.pid);
  return ids;
}

}  // namespace precast
