#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace precast {

/// What a session that is not built in is told of the engine's options; see precast_session_config_t.
struct DeviceLimits {
  std::uint64_t kv_cache_bytes = 0;
  std::uint32_t max_batch_size = 0;
  std::uint32_t max_num_tokens = 0;
  std::uint32_t max_seq_len = 0;
};

/// What a worker process is told on its command line.
struct WorkerArguments {
  std::size_t rank = 0;
  int parent_pid = 0;
  int rank_memory = -1;  ///< descriptor of a RankMemory
  int step_memory = -1;  ///< descriptor of a StepMemory
  std::string engine_dir{};
  std::string onnxruntime_path{};
  std::string kernel_level{};
  std::uint32_t num_threads = 0;
  std::int32_t num_blocks = 0;
  DeviceLimits device{};
  std::chrono::milliseconds rank_timeout{0};
  unsigned spins = 0;
  bool is_read = false;  ///< whether rank 0 reads what this process writes, and messages of its log

  std::vector<std::string> to_strings() const;                                      ///< without the program's name
  static WorkerArguments from_strings(const std::vector<std::string>& arguments);  ///< throws Error(invalid_argument)
};

/// Loads the rank, computes the steps that rank 0 publishes, and returns when that stops. Returns the exit status. Ends the
/// process when the parent ends, however that is.
int run_local_worker(const WorkerArguments& arguments);

}  // namespace precast
