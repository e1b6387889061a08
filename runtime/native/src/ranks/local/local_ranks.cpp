#include "runtime/native/src/ranks/local/local_ranks.h"

#include <chrono>
#include <system_error>
#include <thread>
#include <utility>

#include "runtime/native/src/concat.h"
#include "runtime/native/src/error.h"
#include "runtime/native/src/ranks/rank_options.h"

namespace precast {

LocalRanks::LocalRanks(const Settings& settings)
    : first_rank_(settings.first_rank), seat_(settings.seat), rank_timeout_(settings.wait.rank_timeout) {
  const std::string& directory = settings.worker.engine_dir;
  const std::size_t world_size = settings.steps.world_size;
  try {
    ranks_ = RankMemory::create(settings.rank_memory);
    steps_ = StepMemory::create(settings.steps, build_id(directory));
  } catch (const std::system_error& error) {
    throw Error(ErrorCode::io, concat(directory, ": cannot start ", world_size, world_size == 1 ? " rank: " : " ranks: ",
                                      error.what()));
  }
  std::vector<WorkerArguments> workers;
  for (std::size_t rank = first_rank_; rank < world_size; ++rank) {
    WorkerArguments worker = settings.worker;
    worker.rank = rank;
    worker.rank_memory = ranks_->memory().descriptor();
    worker.step_memory = steps_->memory().descriptor();
    worker.rank_timeout = settings.wait.rank_timeout;
    worker.spins = settings.wait.spins;
    workers.push_back(std::move(worker));
  }
  workers_ = std::make_unique<WorkerProcesses>(settings.program, workers, ranks_, settings.log);
  communicator_ = std::make_unique<SharedMemoryCommunicator>(ranks_, seat_, settings.wait);
}

LocalRanks::~LocalRanks() {
  if (workers_ != nullptr) workers_->expect_end();
  if (steps_ != nullptr) stop();  // workers that wait end at once, and need not be killed
}

void LocalRanks::wait_until_ready() {
  // Of all at once: where one cannot load, its own words are told, and not what follows from it in the others.
  std::vector<Loading> loading;
  for (std::size_t rank = first_rank_; rank < steps_->sizes().world_size; ++rank) loading.push_back({.rank = rank});
  while (true) {
    // Looked at before the workers' states: one that reports an error does so before it ends.
    const bool has_failed = ranks_->has_failed();
    for (const Loading& worker : loading) throw_if_refused(worker.rank);
    if (has_failed) throw CommunicatorError(ranks_->failure());
    std::erase_if(loading, [&](const Loading& worker) { return state_of(worker.rank) == StepMemory::State::ready; });
    if (loading.empty()) return;
    for (Loading& worker : loading) look_for_life(worker);
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

StepMemory::State LocalRanks::state_of(std::size_t rank) const {
  return static_cast<StepMemory::State>(steps_->worker(rank).state.load());
}

void LocalRanks::throw_if_refused(std::size_t rank) const {
  if (state_of(rank) != StepMemory::State::failed) return;
  const StepMemory::Worker& worker = steps_->worker(rank);
  throw Error(static_cast<ErrorCode>(worker.error_code),
              concat("rank ", rank, ": ", std::string_view(worker.error, worker.error_bytes)));
}

/// Loading may take long, and a worker that loads shows that it lives. One that ends is noticed by the processes' watcher.
void LocalRanks::look_for_life(Loading& worker) {
  const auto now = std::chrono::steady_clock::now();
  const std::uint32_t heartbeat = ranks_->state(worker.rank).heartbeat.load();
  if (heartbeat != worker.last_heartbeat) {
    worker.last_heartbeat = heartbeat;
    worker.last_sign = now;
  } else if (now - worker.last_sign >= rank_timeout_) {
    communicator_->give_up(worker.rank, "to load");
  }
}

void LocalRanks::publish(std::uint32_t number, const StepBatch& batch) {
  // The slot's step before was collected, but ranks that have no logits may still be at it.
  for (std::size_t rank = first_rank_; rank < steps_->sizes().world_size; ++rank) {
    wait_for(rank, number - static_cast<std::uint32_t>(steps_->sizes().num_slots));
  }
  steps_->publish(number, batch);
}

void LocalRanks::wait_for(std::size_t rank, std::uint32_t number) {
  StepMemory::Worker& worker = steps_->worker(rank);
  communicator_->wait(worker.done, worker.done_sleepers, number, rank, "to compute its part of a step");
}

}  // namespace precast
