#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace precast {

/// What a worker process is told on its command line.
struct WorkerArguments {
  std::size_t rank = 0;
  int parent_pid = 0;
  int rank_memory = -1;  ///< descriptor of a RankMemory
  int step_memory = -1;  ///< descriptor of a StepMemory
  std::string engine_dir;
  std::string onnxruntime_path;
  std::string kernel_level;
  std::uint32_t num_threads = 0;
  std::int32_t num_blocks = 0;
  std::chrono::milliseconds rank_timeout{0};
  unsigned spins = 0;
  bool is_read = false;  ///< whether rank 0 reads what this process writes, and messages of its log

  std::vector<std::string> to_strings() const;                                      ///< without the program's name
  static WorkerArguments from_strings(const std::vector<std::string>& arguments);  ///< throws std::invalid_argument
};

/// Loads the rank, computes the steps that rank 0 publishes, and returns when that stops. Returns the exit status. Ends the
/// process when the parent ends, however that is.
int run_local_worker(const WorkerArguments& arguments);

}  // namespace precast
