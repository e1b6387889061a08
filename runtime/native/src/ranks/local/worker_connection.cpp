#include "runtime/native/src/ranks/local/worker_connection.h"

#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <stdexcept>
#include <thread>
#include <utility>

#include "plugins/collectives/cpu/futex.h"
#include "runtime/native/src/concat.h"
#include "runtime/native/src/ranks/rank_options.h"

namespace precast {
namespace {

constexpr std::chrono::milliseconds longest_sleep{50};

template <typename T>
void copy_result(std::span<const T> from, T* to, std::size_t room) {
  if (from.size() > room) throw std::logic_error("a step has a larger result than the memory between ranks was made for");
  std::ranges::copy(from, to);
}

}  // namespace

void end_with(int parent_pid) {
  const int parent = static_cast<int>(::syscall(SYS_pidfd_open, parent_pid, 0));
  if (parent < 0 || ::getppid() != parent_pid) ::_exit(1);
  std::thread([parent] {
    pollfd watched{.fd = parent, .events = POLLIN, .revents = 0};
    while (::poll(&watched, 1, -1) < 0 && errno == EINTR) {
    }
    ::_exit(1);
  }).detach();
}

std::unique_ptr<WorkerConnection> WorkerConnection::open(const WorkerArguments& arguments) {
  auto ranks = RankMemory::open(SharedMemory::open(arguments.rank_memory));
  try {
    auto steps = StepMemory::open(SharedMemory::open(arguments.step_memory), build_id(arguments.engine_dir));
    return std::unique_ptr<WorkerConnection>(new WorkerConnection(std::move(ranks), std::move(steps), arguments));
  } catch (const std::invalid_argument& error) {
    ranks->fail(arguments.rank, concat("rank ", arguments.rank, ": ", error.what()));
    return nullptr;
  }
}

WorkerConnection::WorkerConnection(std::shared_ptr<RankMemory> ranks, std::shared_ptr<StepMemory> steps,
                                   const WorkerArguments& arguments)
    : ranks_(std::move(ranks)),
      steps_(std::move(steps)),
      rank_(arguments.rank),
      spins_(arguments.spins),
      communicator_(ranks_, rank_, {.rank_timeout = arguments.rank_timeout, .spins = spins_}) {}

bool WorkerConnection::is_published(std::uint32_t number) const noexcept {
  return static_cast<std::int32_t>(steps_->published().load() - number) >= 0;
}

bool WorkerConnection::next_step(StepBatch& batch) {
  if (!wait_for_step()) return false;
  steps_->read(++number_, batch);
  return true;
}

/// A rank that waits for work is alive.
bool WorkerConnection::wait_for_step() {
  const std::atomic<std::uint32_t>& published = steps_->published();
  const std::uint32_t wanted = number_ + 1;
  for (unsigned spin = 0; spin < spins_; ++spin) {
    if (is_published(wanted)) return true;
  }
  steps_->published_sleepers().fetch_add(1);
  while (!is_published(wanted) && !is_over()) {
    communicator_.heartbeat();
    futex_wait(published, wanted - 1, longest_sleep);
  }
  steps_->published_sleepers().fetch_sub(1);
  return is_published(wanted) && !ranks_->has_failed();
}

void WorkerConnection::show_whom_it_waits_for() noexcept {
  const std::uint32_t oldest = num_done_ + 1;
  RankState& own = ranks_->state(rank_);
  for (std::size_t rank = 0; rank < steps_->sizes().world_size; ++rank) {
    if (static_cast<std::int32_t>(steps_->worker(rank).taken.load(std::memory_order_relaxed) - oldest) >= 0) continue;
    own.show_waiting(rank);
    own.pulse.fetch_add(1, std::memory_order_relaxed);
    waits_for_a_rank_ = true;
    return;
  }
  if (!waits_for_a_rank_) return;
  waits_for_a_rank_ = false;
  own.show_going_on();  // its own time begins now
}

void WorkerConnection::report_done(std::span<const float> logits) {
  const StepMemorySizes& sizes = steps_->sizes();
  ++num_done_;
  if (sizes.carries_logits && !logits.empty()) {
    copy_result(logits, steps_->result(num_done_).logits, sizes.limits.max_logit_rows * sizes.limits.vocab_size);
  }
  steps_->report_done(rank_, num_done_);
}

void WorkerConnection::report_result(const StepBatch& batch, const StepResult& result, std::size_t max_candidates) {
  const StepMemorySizes& sizes = steps_->sizes();
  const std::size_t rows = sizes.limits.max_logit_rows;
  const StepArrays to = steps_->result(num_done_ + 1);
  copy_result(result.token_ids, to.token_ids, rows);
  if (std::ranges::any_of(batch.num_candidates, [](std::int32_t count) { return count > 0; })) {
    copy_result(result.candidate_ids, to.candidate_ids, rows * std::min(max_candidates, sizes.max_candidates));
    copy_result(result.candidate_logits, to.candidate_logits, rows * std::min(max_candidates, sizes.max_candidates));
    copy_result(result.log_sums, to.log_sums, rows);
  }
  report_done(result.logits);
}

}  // namespace precast
