#include "runtime/native/src/ranks/device/device_worker.h"

#include <chrono>
#include <cstring>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <new>
#include <thread>
#include <utility>

#include "runtime/native/src/concat.h"
#include "runtime/native/src/engine_loader.h"
#include "runtime/native/src/engine_manifest.h"
#include "runtime/native/src/error.h"
#include "runtime/native/src/ranks/local/worker_connection.h"
#include "runtime/native/src/ranks/local/worker_output.h"
#include "runtime/native/src/ranks/sign_of_life.h"

namespace precast {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int longest_enqueue_timeouts = 10;  ///< how many times rank_timeout handing over a step may take

/// Between two looks at a step that a device computes: it has a processor of its own for the time of most steps.
void rest(Clock::duration waited) {
  if (waited < std::chrono::milliseconds(20)) {
    std::this_thread::yield();
  } else {
    std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
}

/// As in DeviceSession: tensor rank 0 of the last stage.
bool gives_results(const WorkerArguments& arguments, const EngineManifest& manifest) {
  return arguments.rank + static_cast<std::size_t>(manifest.mapping.tensor_parallel_size) == manifest.ranks.size();
}

MadeSession make(const WorkerArguments& arguments, const EngineManifest& manifest, const SessionFactory& make_session,
                 WorkerConnection& link) {
  const SignOfLife lives(link.communicator());
  std::function<void(std::span<const std::byte>, std::span<std::byte>)> exchange;
  if (manifest.ranks.size() > 1) {
    exchange = [&link, rank = arguments.rank](std::span<const std::byte> mine, std::span<std::byte> all) {
      link.steps().exchange(rank, mine, all, [&link] {
        if (link.is_over()) throw Error(ErrorCode::rank_failed, "the other ranks have ended");
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      });
    };
  }
  return make_session({.engine_path = arguments.engine_dir,
                       .kv_cache_bytes = arguments.device.kv_cache_bytes,
                       .max_batch_size = arguments.device.max_batch_size,
                       .max_num_tokens = arguments.device.max_num_tokens,
                       .max_seq_len = arguments.device.max_seq_len,
                       .tokens_per_block = static_cast<std::uint32_t>(manifest.build.tokens_per_block),
                       .num_kv_groups = static_cast<std::uint32_t>(manifest.ranks.front().kv_groups.size()),
                       .vocab_size = static_cast<std::uint32_t>(manifest.model.vocab_size),
                       .rank = static_cast<std::uint32_t>(arguments.rank),
                       .world_size = static_cast<std::uint32_t>(manifest.ranks.size()),
                       .gives_results = gives_results(arguments, manifest),
                       .exchange = exchange});
}

WorkerProperties properties_of(const MadeSession& made) {
  WorkerProperties properties{.num_blocks = made.num_blocks,
                              .max_in_flight = static_cast<std::uint32_t>(made.session->max_in_flight()),
                              .chooses_tokens = made.session->chooses_tokens() ? 1U : 0U,
                              .max_candidates = static_cast<std::uint32_t>(made.session->max_candidates())};
  std::strncpy(properties.device, made.device.c_str(), sizeof properties.device - 1);
  return properties;
}

ErrorCode code_of(const std::exception& error) {
  if (const auto* const known = dynamic_cast<const Error*>(&error)) return known->code();
  return dynamic_cast<const std::bad_alloc*>(&error) != nullptr ? ErrorCode::resource_exhausted : ErrorCode::internal;
}

/// Computes steps, as many at a time as the session takes.
///
/// What counts as progress: a step that is done, and one that was handed to the device. A step that the device computes for
/// longer than rank_timeout is hung; steps are no larger than the plan allows, and take milliseconds. But the first of a shape
/// may have kernels compiled while it is handed over, which may take longer than that: so that call may.
class Steps {
 public:
  /// `gives_results`: whether this rank's results are those of the engine.
  Steps(Session& session, WorkerConnection& link, bool gives_results, std::chrono::milliseconds rank_timeout)
      : session_(session),
        link_(link),
        gives_results_(gives_results),
        compiling_(link.communicator(), rank_timeout / 4, longest_enqueue_timeouts * rank_timeout) {}

  /// Until no step will follow, or the ranks have failed.
  void run() {
    while (true) {
      const bool has_room = in_flight_.size() < session_.max_in_flight();
      if (in_flight_.empty() || (has_room && link_.has_next_step())) {
        if (!take()) return;
      } else if (session_.is_done(in_flight_.front()->id)) {
        give();
      } else {
        // Also where there is no room: a device that waits for one whose process has ended is done with nothing any more.
        if (link_.has_failed()) return;
        link_.show_whom_it_waits_for();
        rest(Clock::now() - started_);
      }
    }
  }

 private:
  /// False: there is no next step.
  bool take() {
    auto batch = std::make_unique<StepBatch>();
    if (!link_.next_step(*batch)) return false;
    compiling_.during([&] { session_.enqueue(*batch); });
    link_.report_taken();
    if (in_flight_.empty()) started_ = Clock::now();
    in_flight_.push_back(std::move(batch));
    link_.communicator().heartbeat();
    return true;
  }

  void give() {
    const std::unique_ptr<StepBatch> oldest = std::move(in_flight_.front());
    in_flight_.pop_front();
    const StepResult result = session_.collect(oldest->id);
    if (gives_results_) {
      link_.report_result(*oldest, result, session_.max_candidates());
    } else {
      link_.report_done({});
    }
    started_ = Clock::now();
    link_.communicator().heartbeat();
  }

  Session& session_;
  WorkerConnection& link_;
  const bool gives_results_;
  SignOfCalls compiling_;
  std::deque<std::unique_ptr<StepBatch>> in_flight_;
  Clock::time_point started_;  ///< when the device began with the oldest step, or may have
};

}  // namespace

int run_device_worker(const WorkerArguments& arguments, const SessionFactory& make_session) {
  end_with(arguments.parent_pid);
  const std::unique_ptr<WorkerConnection> link = WorkerConnection::open(arguments);
  if (link == nullptr) return 1;
  MadeSession made;
  bool is_read = false;  // its results are
  try {
    const EngineManifest manifest = read_manifest(arguments.engine_dir, device_support());
    is_read = gives_results(arguments, manifest);
    made = make(arguments, manifest, make_session, *link);
  } catch (const std::exception& error) {
    // Where the ranks have ended, somebody else's reason is the one to tell.
    if (!link->is_over()) link->steps().report_error(arguments.rank, static_cast<std::int32_t>(code_of(error)), error.what());
    return 1;
  }
  if (arguments.is_read) worker_log().info("loaded on ", made.device.empty() ? "its device" : made.device);
  link->steps().report_ready(arguments.rank, properties_of(made));
  try {
    Steps(*made.session, *link, is_read, arguments.rank_timeout).run();
  } catch (const std::exception& error) {
    link->fail(concat("rank ", arguments.rank, ": ", error.what()));
  }
  return link->has_failed() ? 1 : 0;
}

}  // namespace precast
