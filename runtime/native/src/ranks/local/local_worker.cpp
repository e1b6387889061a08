#include "runtime/native/src/ranks/local/local_worker.h"

#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <memory>
#include <span>
#include <stdexcept>
#include <thread>
#include <utility>

#include "plugins/collectives/cpu/futex.h"
#include "plugins/collectives/cpu/shared_memory_communicator.h"
#include "runtime/native/src/concat.h"
#include "runtime/native/src/error.h"
#include "runtime/native/src/ranks/local/step_memory.h"
#include "runtime/native/src/ranks/local/worker_output.h"
#include "runtime/native/src/ranks/rank_options.h"
#include "runtime/native/src/ranks/worker.h"

namespace precast {
namespace {

constexpr std::chrono::milliseconds longest_sleep{50};

/// Ends this process as soon as the parent has ended. The parent may be killed at any moment, so nothing is tidied up: the
/// memory of ranks has no name, and goes with the last of them.
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

/// A worker's connection to rank 0 in the memory that they share.
class LocalWorker final : public WorkerLink {
 public:
  LocalWorker(std::shared_ptr<RankMemory> ranks, std::shared_ptr<StepMemory> steps, const WorkerArguments& arguments)
      : ranks_(std::move(ranks)),
        steps_(std::move(steps)),
        rank_(arguments.rank),
        spins_(arguments.spins),
        communicator_(ranks_, rank_, {.rank_timeout = arguments.rank_timeout, .spins = spins_}) {}

  Communicator& communicator() noexcept override { return communicator_; }
  void fail(std::string_view reason) noexcept override { ranks_->fail(rank_, reason); }
  bool has_failed() const noexcept override { return ranks_->has_failed(); }
  std::string failure() const override { return ranks_->failure(); }

  bool next_step(StepBatch& batch) override {
    ++number_;
    if (!wait_for_step()) return false;
    steps_->read(number_, batch);
    return true;
  }

  void report_done(std::span<const float> logits) override {
    const StepMemorySizes& sizes = steps_->sizes();
    if (sizes.carries_logits && !logits.empty()) {
      if (logits.size() > sizes.limits.max_logit_rows * sizes.limits.vocab_size) {
        throw std::logic_error("a step has more logits than the memory between ranks was made for");
      }
      std::ranges::copy(logits, steps_->logits(number_));
    }
    steps_->report_done(rank_, number_);
  }

 private:
  /// A rank that waits for work is alive.
  bool wait_for_step() {
    const std::atomic<std::uint32_t>& published = steps_->published();
    const auto is_there = [&] { return static_cast<std::int32_t>(published.load() - number_) >= 0; };
    for (unsigned spin = 0; spin < spins_; ++spin) {
      if (is_there()) return true;
    }
    steps_->published_sleepers().fetch_add(1);
    while (!is_there() && !steps_->is_stopped() && !ranks_->has_failed()) {
      communicator_.heartbeat();
      futex_wait(published, number_ - 1, longest_sleep);
    }
    steps_->published_sleepers().fetch_sub(1);
    return is_there() && !ranks_->has_failed();
  }

  std::shared_ptr<RankMemory> ranks_;
  std::shared_ptr<StepMemory> steps_;
  const std::size_t rank_;
  const unsigned spins_;
  SharedMemoryCommunicator communicator_;
  std::uint32_t number_ = 0;  ///< of the latest step
};

}  // namespace

std::vector<std::string> WorkerArguments::to_strings() const {
  return {std::to_string(rank),        std::to_string(parent_pid), std::to_string(rank_memory),
          std::to_string(step_memory), engine_dir,                 onnxruntime_path,
          kernel_level,                std::to_string(num_threads), std::to_string(num_blocks),
          std::to_string(rank_timeout.count()), std::to_string(spins), std::to_string(is_read)};
}

WorkerArguments WorkerArguments::from_strings(const std::vector<std::string>& arguments) {
  if (arguments.size() != 12) throw std::invalid_argument("precast-worker is started by precast, not by hand");
  const auto number = [&](std::size_t i) { return std::stoll(arguments[i]); };
  return {.rank = static_cast<std::size_t>(number(0)),
          .parent_pid = static_cast<int>(number(1)),
          .rank_memory = static_cast<int>(number(2)),
          .step_memory = static_cast<int>(number(3)),
          .engine_dir = arguments[4],
          .onnxruntime_path = arguments[5],
          .kernel_level = arguments[6],
          .num_threads = static_cast<std::uint32_t>(number(7)),
          .num_blocks = static_cast<std::int32_t>(number(8)),
          .rank_timeout = std::chrono::milliseconds(number(9)),
          .spins = static_cast<unsigned>(number(10)),
          .is_read = number(11) != 0};
}

int run_local_worker(const WorkerArguments& arguments) {
  end_with(arguments.parent_pid);
  const auto ranks = RankMemory::open(SharedMemory::open(arguments.rank_memory));
  std::shared_ptr<StepMemory> steps;
  try {
    steps = StepMemory::open(SharedMemory::open(arguments.step_memory), build_id(arguments.engine_dir));
  } catch (const std::invalid_argument& error) {
    ranks->fail(arguments.rank, concat("rank ", arguments.rank, ": ", error.what()));
    return 1;
  }
  LocalWorker link(ranks, steps, arguments);
  std::unique_ptr<OrtSession> session;
  try {
    session = load_rank(arguments.engine_dir, {.onnxruntime_path = arguments.onnxruntime_path,
                                               .num_threads = arguments.num_threads,
                                               .kernel_level = arguments.kernel_level,
                                               .num_blocks = arguments.num_blocks,
                                               .rank = arguments.rank,
                                               .communicator = &link.communicator()});
  } catch (const Error& error) {
    steps->report_error(arguments.rank, static_cast<std::int32_t>(error.code()), error.what());
    return 1;
  }
  if (arguments.is_read) worker_log().info(describe_loaded(*session));
  steps->report_ready(arguments.rank);
  run_steps(*session, arguments.rank, link);
  return link.has_failed() ? 1 : 0;
}

}  // namespace precast
