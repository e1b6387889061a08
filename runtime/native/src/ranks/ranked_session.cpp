#include "runtime/native/src/ranks/ranked_session.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <new>
#include <stdexcept>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "runtime/native/src/concat.h"
#include "runtime/native/src/error.h"

namespace precast {
namespace {

constexpr unsigned spins_with_own_processor = WaitOptions{}.spins;

std::uint32_t num_processors() {
  cpu_set_t processors;
  const bool is_known = ::sched_getaffinity(0, sizeof processors, &processors) == 0;
  return std::max(1U, is_known ? static_cast<std::uint32_t>(CPU_COUNT(&processors)) : std::thread::hardware_concurrency());
}

}  // namespace

std::unique_ptr<RankedSession> RankedSession::load(const EngineManifest& manifest, const RankedSessionOptions& options) {
  try {
    return std::unique_ptr<RankedSession>(new RankedSession(manifest, options));
  } catch (const std::system_error& error) {
    throw Error(ErrorCode::io, concat(manifest.directory.string(), ": cannot start ", manifest.ranks.size(),
                                      " ranks: ", error.what()));
  }
}

RankedSession::RankedSession(const EngineManifest& manifest, const RankedSessionOptions& options)
    : num_stages_(static_cast<std::size_t>(manifest.mapping.pipeline_parallel_size)),
      logits_rank_((num_stages_ - 1) * static_cast<std::size_t>(manifest.mapping.tensor_parallel_size)),
      rank_timeout_(options.rank_timeout),
      vocab_size_(static_cast<std::size_t>(manifest.model.vocab_size)),
      logit_rows_(std::bit_ceil(num_stages_)) {
  const std::size_t world_size = manifest.ranks.size();
  const auto tensor_parallel_size = static_cast<std::size_t>(manifest.mapping.tensor_parallel_size);
  const std::string directory = manifest.directory.string();
  StepLimits limits = options.limits;
  limits.world_size = world_size;
  limits.num_slots = logit_rows_.size();
  limits.carries_logits = num_stages_ > 1;
  limits.vocab_size = vocab_size_;
  ranks_ = RankMemory::create({.tensor_parallel_size = tensor_parallel_size, .pipeline_parallel_size = num_stages_});
  steps_ = StepMemory::create(limits, build_id(directory));

  const std::uint32_t total_threads = options.rank.num_threads != 0 ? options.rank.num_threads : num_processors();
  OrtSessionOptions rank0 = options.rank;
  rank0.num_threads = std::max(1U, total_threads / static_cast<std::uint32_t>(world_size));
  // Who spins while the rank that it waits for has no processor only keeps that from running.
  const bool has_processors = rank0.num_threads * world_size <= num_processors();
  const unsigned spins = has_processors ? spins_with_own_processor : 0;
  std::vector<WorkerArguments> workers;
  for (std::size_t rank = 1; rank < world_size; ++rank) {
    workers.push_back({.rank = rank,
                       .parent_pid = 0,
                       .rank_memory = ranks_->memory().descriptor(),
                       .step_memory = steps_->memory().descriptor(),
                       .engine_dir = directory,
                       .onnxruntime_path = rank0.onnxruntime_path,
                       .kernel_level = rank0.kernel_level,
                       .num_threads = rank0.num_threads,
                       .num_blocks = rank0.num_blocks,
                       .rank_timeout = options.rank_timeout,
                       .spins = spins});
  }
  workers_ = std::make_unique<WorkerProcesses>(find_worker(options.worker_path), workers, ranks_, options.log);
  communicator_ = std::make_unique<SharedMemoryCommunicator>(
      ranks_, 0, WaitOptions{.rank_timeout = options.rank_timeout, .spins = spins});
  rank0.rank = 0;
  rank0.communicator = communicator_.get();
  try {
    rank0_ = OrtSession::load(manifest, rank0);
    for (std::size_t rank = 1; rank < world_size; ++rank) wait_until_ready(rank);
  } catch (...) {
    steps_->stop();  // workers that have loaded end at once, and need not be killed
    throw;
  }
}

RankedSession::~RankedSession() {
  if (workers_ != nullptr) workers_->expect_end();
  if (steps_ != nullptr) steps_->stop();
}

template <typename Work>
auto RankedSession::guarded(Work&& work) {
  try {
    return std::forward<Work>(work)();
  } catch (const Error&) {
    if (ranks_->has_failed()) throw_failure();  // an op that met it wraps it into a sentence of ONNX Runtime's
    ranks_->fail(0, "rank 0 could not compute its part of a step");  // which the others wait for
    throw;
  } catch (const std::bad_alloc&) {
    ranks_->fail(0, "rank 0 has no memory left for its part of a step");
    throw_failure();
  } catch (const CommunicatorError&) {
    throw_failure();
  }
}

void RankedSession::wait_until_ready(std::size_t rank) {
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
      guarded([&] { communicator_->give_up(rank, "to load"); });
    }
  }
  if (state() == StepMemory::State::failed) {
    throw Error(static_cast<ErrorCode>(worker.error_code),
                concat("rank ", rank, ": ", std::string(worker.error, worker.error_bytes)));
  }
  if (ranks_->has_failed()) throw_failure();
}

void RankedSession::enqueue(const StepBatch& batch) {
  if (ranks_->has_failed()) throw_failure();
  const std::uint32_t number = num_published_ + 1;
  guarded([&] {
    // The slot's step before was collected, but ranks that have no logits may still be at it.
    for (std::size_t rank = 1; rank < steps_->limits().world_size; ++rank) {
      wait_for(rank, number - static_cast<std::uint32_t>(logit_rows_.size()));
    }
    steps_->publish(number, batch);
    num_published_ = number;
    logit_rows_[number % logit_rows_.size()] = batch.logit_rows.size();
    rank0_->enqueue(batch);
    // With several stages rank 0's part is done now, and the next step may follow it through the pipeline.
    if (num_stages_ > 1) rank0_->collect(batch.id);
  });
}

StepResult RankedSession::collect(std::uint64_t step) {
  return guarded([&]() -> StepResult {
    const std::uint32_t number = ++num_collected_;
    if (num_stages_ == 1) return rank0_->collect(step);
    wait_for(logits_rank_, number);
    const std::size_t count = logit_rows_[number % logit_rows_.size()] * vocab_size_;
    return {.logits = {steps_->logits(number), count}, .token_ids = {}};
  });
}

void RankedSession::wait_for(std::size_t rank, std::uint32_t number) {
  StepMemory::Worker& worker = steps_->worker(rank);
  communicator_->wait(worker.done, worker.done_sleepers, number, rank, "to compute its part of a step");
}

void RankedSession::throw_failure() const {
  throw Error(ErrorCode::rank_failed, ranks_->failure());
}

}  // namespace precast
