#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstddef>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "plugins/collectives/cpu/rank_memory.h"
#include "runtime/native/src/log.h"
#include "runtime/native/src/ranks/local/local_worker.h"
#include "runtime/native/src/ranks/local/worker_output.h"
#include "runtime/native/src/ranks/log_queue.h"

namespace precast {

/// The path of precast-worker: `option`, else the variable PRECAST_WORKER, else beside this library or in ../bin from there.
/// Throws Error(not_found).
std::string find_worker(const std::string& option);

/// A program that runs a rank.
struct WorkerProgram {
  std::string path{};  ///< looked for on the PATH where it is a mere name
  std::vector<std::string> first_arguments{};  ///< before those of the worker
  std::string choice{};  ///< how to choose another one, for errors: "set X to its path"
};

/// The processes of ranks, which end with this object, and with this process.
///
/// A thread watches them: one that ends while it is needed fails all ranks, with a reason that names it and its last words.
/// What they write goes to the log, line by line, with the number of its rank; where nobody reads that, to this process's
/// standard output and error.
class WorkerProcesses {
 public:
  /// Starts one process for each of `workers`, whose descriptors of memory are this process's. Throws Error.
  WorkerProcesses(const WorkerProgram& program, const std::vector<WorkerArguments>& workers,
                  std::shared_ptr<RankMemory> ranks, const Log& log);
  WorkerProcesses(const WorkerProcesses&) = delete;
  WorkerProcesses& operator=(const WorkerProcesses&) = delete;

  /// Waits for a moment for processes that were told to stop, and kills those that go on. No child is left.
  ~WorkerProcesses();

  /// From now on the end of a process is no failure.
  void expect_end() noexcept { ends_are_expected_ = true; }
  std::vector<pid_t> process_ids() const;

 private:
  struct Process {
    std::size_t rank = 0;
    pid_t pid = -1;
    int pidfd = -1;
    int output = -1;  ///< a pipe from its standard output and error; -1: they are this process's
    bool has_ended = false;
    LineSplitter lines{};
    std::string last_words{};  ///< the last line that was no message
  };

  void start(const WorkerProgram& program, const WorkerArguments& worker);
  void kill_all() noexcept;
  void watch();
  void reap(Process& process);
  void read_output(Process& process);

  std::shared_ptr<RankMemory> ranks_;
  std::unique_ptr<LogQueue> log_;  ///< none: nobody reads it
  std::vector<Process> processes_;
  std::atomic<bool> ends_are_expected_ = false;
  std::atomic<bool> stops_ = false;
  int wake_fd_ = -1;  // readable: the watching thread is to look at stops_
  std::thread watcher_;
};

}  // namespace precast
