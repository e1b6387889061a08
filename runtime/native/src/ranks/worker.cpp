#include "runtime/native/src/ranks/worker.h"

#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <exception>
#include <fstream>
#include <iterator>
#include <memory>
#include <span>
#include <stdexcept>
#include <stop_token>
#include <thread>

#include "plugins/collectives/cpu/futex.h"
#include "plugins/collectives/cpu/shared_memory_communicator.h"
#include "runtime/native/src/concat.h"
#include "runtime/native/src/crc32.h"
#include "runtime/native/src/engine_loader.h"
#include "runtime/native/src/engine_manifest.h"
#include "runtime/native/src/error.h"
#include "runtime/native/src/ort_session.h"
#include "runtime/native/src/ranks/step_memory.h"
#include "runtime/native/src/ranks/worker_output.h"
#include "runtime/native/src/version.h"

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

/// Shows that this process lives while it loads, which may take long from a slow disk.
class SignOfLife {
 public:
  explicit SignOfLife(SharedMemoryCommunicator& communicator)
      : thread_([&communicator](const std::stop_token& stop) {
          for (; !stop.stop_requested(); std::this_thread::sleep_for(longest_sleep)) communicator.heartbeat();
        }) {}

 private:
  std::jthread thread_;
};

/// Whether step `number` was published; false: no step follows. A rank that waits for work is alive.
bool wait_for_step(const StepMemory& steps, const RankMemory& ranks, SharedMemoryCommunicator& communicator,
                   std::uint32_t number, unsigned spins) {
  const std::atomic<std::uint32_t>& published = steps.published();
  const auto is_there = [&] { return static_cast<std::int32_t>(published.load() - number) >= 0; };
  for (unsigned spin = 0; spin < spins; ++spin) {
    if (is_there()) return true;
  }
  steps.published_sleepers().fetch_add(1);
  while (!is_there() && !steps.is_stopped() && !ranks.has_failed()) {
    communicator.heartbeat();
    futex_wait(published, number - 1, longest_sleep);
  }
  steps.published_sleepers().fetch_sub(1);
  return is_there() && !ranks.has_failed();
}

void run_steps(OrtSession& session, StepMemory& steps, const RankMemory& ranks, SharedMemoryCommunicator& communicator,
               const WorkerArguments& arguments) {
  StepBatch batch;
  for (std::uint32_t number = 1; wait_for_step(steps, ranks, communicator, number, arguments.spins); ++number) {
    steps.read(number, batch);
    session.enqueue(batch);
    const std::span<const float> logits = session.collect(batch.id).logits;
    if (steps.limits().carries_logits && !logits.empty()) {
      if (logits.size() > steps.limits().max_logit_rows * steps.limits().vocab_size) {
        throw std::logic_error("a step has more logits than the memory between ranks was made for");
      }
      std::ranges::copy(logits, steps.logits(number));
    }
    steps.report_done(arguments.rank, number);
  }
}

}  // namespace

std::uint64_t build_id(const std::string& engine_dir) {
  std::ifstream file(engine_dir + "/engine.json", std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  const std::string precast_version(version());
  const auto bytes = [](const std::string& from) { return std::as_bytes(std::span(from)); };
  return std::uint64_t{crc32(bytes(text))} << 32 | crc32(bytes(precast_version));
}

std::vector<std::string> WorkerArguments::to_strings() const {
  return {std::to_string(rank),        std::to_string(parent_pid), std::to_string(rank_memory),
          std::to_string(step_memory), engine_dir,                 onnxruntime_path,
          kernel_level,                std::to_string(num_threads), std::to_string(num_blocks),
          std::to_string(rank_timeout.count()), std::to_string(spins)};
}

WorkerArguments WorkerArguments::from_strings(const std::vector<std::string>& arguments) {
  if (arguments.size() != 11) throw std::invalid_argument("precast-worker is started by precast, not by hand");
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
          .spins = static_cast<unsigned>(number(10))};
}

int run_worker(const WorkerArguments& arguments) {
  end_with(arguments.parent_pid);
  const auto ranks = RankMemory::open(SharedMemory::open(arguments.rank_memory));
  std::shared_ptr<StepMemory> steps;
  try {
    steps = StepMemory::open(SharedMemory::open(arguments.step_memory), build_id(arguments.engine_dir));
  } catch (const std::invalid_argument& error) {
    ranks->fail(arguments.rank, concat("rank ", arguments.rank, ": ", error.what()));
    return 1;
  }
  SharedMemoryCommunicator communicator(ranks, arguments.rank,
                                        {.rank_timeout = arguments.rank_timeout, .spins = arguments.spins});
  std::unique_ptr<OrtSession> session;
  try {
    const SignOfLife lives(communicator);
    const EngineManifest manifest = read_manifest(arguments.engine_dir, runtime_support());
    session = OrtSession::load(manifest, {.onnxruntime_path = arguments.onnxruntime_path,
                                          .num_threads = arguments.num_threads,
                                          .kernel_level = arguments.kernel_level,
                                          .num_blocks = arguments.num_blocks,
                                          .rank = arguments.rank,
                                          .communicator = &communicator});
  } catch (const Error& error) {
    steps->report_error(arguments.rank, static_cast<std::int32_t>(error.code()), error.what());
    return 1;
  }
  worker_log().info("loaded ", session->weights_bytes(), " bytes of weights; ", session->num_threads(), " threads, kernels ",
                    name(session->kernel_level()));
  steps->report_ready(arguments.rank);
  try {
    run_steps(*session, *steps, *ranks, communicator, arguments);
  } catch (const std::exception& error) {
    // What a rank has not computed, the others wait for in vain.
    ranks->fail(arguments.rank, concat("rank ", arguments.rank, ": ", error.what()));
    return 1;
  }
  return 0;
}

}  // namespace precast
