#include "runtime/native/src/ranks/local/local_worker.h"

#include <charconv>
#include <memory>
#include <system_error>

#include "runtime/native/src/error.h"
#include "runtime/native/src/ranks/local/worker_connection.h"
#include "runtime/native/src/ranks/local/worker_output.h"
#include "runtime/native/src/ranks/worker.h"

namespace precast {
namespace {

[[noreturn]] void refuse_arguments() {
  throw Error(ErrorCode::invalid_argument, "precast-worker is started by precast, not by hand");
}

}  // namespace

std::vector<std::string> WorkerArguments::to_strings() const {
  return {std::to_string(rank),        std::to_string(parent_pid), std::to_string(rank_memory),
          std::to_string(step_memory), engine_dir,                 onnxruntime_path,
          kernel_level,                std::to_string(num_threads), std::to_string(num_blocks),
          std::to_string(rank_timeout.count()), std::to_string(spins), std::to_string(is_read),
          std::to_string(device.kv_cache_bytes), std::to_string(device.max_batch_size),
          std::to_string(device.max_num_tokens), std::to_string(device.max_seq_len)};
}

WorkerArguments WorkerArguments::from_strings(const std::vector<std::string>& arguments) {
  if (arguments.size() != 16) refuse_arguments();
  const auto parsed = [&]<typename T>(std::size_t i, T value) {
    const std::string& text = arguments[i];
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || end != text.data() + text.size()) refuse_arguments();
    return value;
  };
  const auto number = [&](std::size_t i) { return parsed(i, std::int64_t{}); };
  const auto small = [&](std::size_t i) { return static_cast<std::uint32_t>(number(i)); };
  return {.rank = static_cast<std::size_t>(number(0)),
          .parent_pid = static_cast<int>(number(1)),
          .rank_memory = static_cast<int>(number(2)),
          .step_memory = static_cast<int>(number(3)),
          .engine_dir = arguments[4],
          .onnxruntime_path = arguments[5],
          .kernel_level = arguments[6],
          .num_threads = small(7),
          .num_blocks = static_cast<std::int32_t>(number(8)),
          .device = {.kv_cache_bytes = parsed(12, std::uint64_t{}),
                     .max_batch_size = small(13),
                     .max_num_tokens = small(14),
                     .max_seq_len = small(15)},
          .rank_timeout = std::chrono::milliseconds(number(9)),
          .spins = static_cast<unsigned>(number(10)),
          .is_read = number(11) != 0};
}

int run_local_worker(const WorkerArguments& arguments) {
  end_with(arguments.parent_pid);
  const std::unique_ptr<WorkerConnection> link = WorkerConnection::open(arguments);
  if (link == nullptr) return 1;
  std::unique_ptr<OrtSession> session;
  try {
    session = load_rank(arguments.engine_dir, {.onnxruntime_path = arguments.onnxruntime_path,
                                               .num_threads = arguments.num_threads,
                                               .kernel_level = arguments.kernel_level,
                                               .num_blocks = arguments.num_blocks,
                                               .rank = arguments.rank,
                                               .communicator = &link->communicator()});
  } catch (const Error& error) {
    link->steps().report_error(arguments.rank, static_cast<std::int32_t>(error.code()), error.what());
    return 1;
  }
  if (arguments.is_read) worker_log().info(describe_loaded(*session));
  link->steps().report_ready(arguments.rank);
  run_steps(*session, arguments.rank, *link);
  return link->has_failed() ? 1 : 0;
}

}  // namespace precast
