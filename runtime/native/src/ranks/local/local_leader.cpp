#include "runtime/native/src/ranks/local/local_leader.h"

#include <atomic>
#include <bit>
#include <system_error>
#include <thread>
#include <vector>

#include "runtime/native/src/concat.h"
#include "runtime/native/src/error.h"

namespace precast {

LocalLeader::LocalLeader(const EngineManifest& manifest, const RankOptions& options, std::uint32_t num_threads)
    : logits_rank_(manifest.ranks.size() - static_cast<std::size_t>(manifest.mapping.tensor_parallel_size)),
      rank_timeout_(options.rank_timeout) {
  const std::size_t world_size = manifest.ranks.size();
  const auto num_stages = static_cast<std::size_t>(manifest.mapping.pipeline_parallel_size);
  const std::string directory = manifest.directory.string();
  try {
    ranks_ = RankMemory::create({.tensor_parallel_size = world_size / num_stages, .pipeline_parallel_size = num_stages});
    steps_ = StepMemory::create({.world_size = world_size,
                                 .num_slots = std::bit_ceil(num_stages),
                                 .carries_logits = num_stages > 1,
                                 .limits = options.limits},
                                build_id(directory));
  } catch (const std::system_error& error) {
    throw Error(ErrorCode::io, concat(directory, ": cannot start ", world_size, " ranks: ", error.what()));
  }
  const unsigned spins = spins_of(world_size, num_threads);
  std::vector<WorkerArguments> workers;
  for (std::size_t rank = 1; rank < world_size; ++rank) {
    workers.push_back({.rank = rank,
                       .parent_pid = 0,
                       .rank_memory = ranks_->memory().descriptor(),
                       .step_memory = steps_->memory().descriptor(),
                       .engine_dir = directory,
                       .onnxruntime_path = options.rank.onnxruntime_path,
                       .kernel_level = options.rank.kernel_level,
                       .num_threads = num_threads,
                       .num_blocks = options.rank.num_blocks,
                       .rank_timeout = options.rank_timeout,
                       .spins = spins});
  }
  workers_ = std::make_unique<WorkerProcesses>(find_worker(options.worker_path), workers, ranks_, options.log);
  communicator_ = std::make_unique<SharedMemoryCommunicator>(
      ranks_, 0, WaitOptions{.rank_timeout = options.rank_timeout, .spins = spins});
}

LocalLeader::~LocalLeader() {
  if (workers_ != nullptr) workers_->expect_end();
  stop();  // workers that wait end at once, and need not be killed
}

void LocalLeader::stop() noexcept { steps_->stop(); }

void LocalLeader::wait_until_ready() {
  for (std::size_t rank = 1; rank < steps_->sizes().world_size; ++rank) wait_until_ready(rank);
}

void LocalLeader::wait_until_ready(std::size_t rank) {
  const StepMemory::Worker& worker = steps_->worker(rank);
  const auto state = [&] { return static_cast<StepMemory::State>(worker.state.load()); };
  // A worker that ends is noticed by the processes' watcher. Loading may take long, and a worker that loads shows that it
  // lives.
  const std::atomic<std::uint32_t>& life = ranks_->state(rank).heartbeat;
  std::uint32_t last_heartbeat = life.load();
  auto last_sign = std::chrono::steady_clock::now();
  while (state() == StepMemory::State::starting && !ranks_->has_failed()) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    const auto now = std::chrono::steady_clock::now();
    if (const std::uint32_t heartbeat = life.load(); heartbeat != last_heartbeat) {
      last_heartbeat = heartbeat;
      last_sign = now;
    } else if (now - last_sign >= rank_timeout_) {
      communicator_->give_up(rank, "to load");
    }
  }
  if (state() == StepMemory::State::failed) {
    throw Error(static_cast<ErrorCode>(worker.error_code),
                concat("rank ", rank, ": ", std::string(worker.error, worker.error_bytes)));
  }
  if (ranks_->has_failed()) throw CommunicatorError(ranks_->failure());
}

void LocalLeader::publish(std::uint32_t number, const StepBatch& batch) {
  // The slot's step before was collected, but ranks that have no logits may still be at it.
  for (std::size_t rank = 1; rank < steps_->sizes().world_size; ++rank) {
    wait_for(rank, number - static_cast<std::uint32_t>(steps_->sizes().num_slots));
  }
  steps_->publish(number, batch);
}

std::span<const float> LocalLeader::wait_for_logits(std::uint32_t number, std::size_t count) {
  wait_for(logits_rank_, number);
  return {steps_->logits(number), count};
}

void LocalLeader::wait_for(std::size_t rank, std::uint32_t number) {
  StepMemory::Worker& worker = steps_->worker(rank);
  communicator_->wait(worker.done, worker.done_sleepers, number, rank, "to compute its part of a step");
}

}  // namespace precast
