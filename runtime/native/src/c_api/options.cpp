#include "runtime/native/src/c_api/options.h"

#include "runtime/native/src/c_api/external_session.h"
#include "runtime/native/src/c_api/logits_processor.h"
#include "runtime/native/src/c_api/structs.h"

namespace precast {
namespace {

precast_engine_options_t default_options() {
  precast_engine_options_t options{};
  options.struct_size = sizeof options;
  options.max_batch_size = 64;
  options.max_num_tokens = 2048;
  return options;
}

CapacityPolicy to_policy(precast_capacity_policy_t policy) {
  if (policy > PRECAST_CAPACITY_STATIC_BATCH) {
    throw Error(ErrorCode::invalid_argument, concat("capacity_policy is ", policy, ", which is none of PRECAST_CAPACITY_*"));
  }
  return static_cast<CapacityPolicy>(policy);
}

Log make_log(precast_log_callback_t callback, void* user_data) {
  if (callback == nullptr) return {};
  return Log([=](LogLevel level, const std::string& message) {
    callback(user_data, static_cast<precast_log_level_t>(level), message.c_str());
  });
}

}  // namespace

EngineOptions to_options(const precast_engine_options_t* from) {
  precast_engine_options_t options = default_options();
  read_struct(from, "precast_engine_options_t", options);
  const precast_engine_options_t defaults = default_options();
  EngineOptions to;
  if (options.onnxruntime_path != nullptr) to.onnxruntime_path = options.onnxruntime_path;
  if (options.worker_path != nullptr) to.worker_path = options.worker_path;
  if (options.python_path != nullptr) to.python_path = options.python_path;
  to.rank_timeout_s = options.rank_timeout_s;
  if (options.kernel_level != nullptr) to.kernel_level = options.kernel_level;
  to.num_threads = options.num_threads;
  to.max_batch_size = options.max_batch_size != 0 ? options.max_batch_size : defaults.max_batch_size;
  to.max_num_tokens = options.max_num_tokens != 0 ? options.max_num_tokens : defaults.max_num_tokens;
  to.max_seq_len = options.max_seq_len;
  to.kv_cache_bytes = options.kv_cache_bytes;
  to.capacity_policy = to_policy(options.capacity_policy);
  to.block_reuse = options.disable_block_reuse == 0;
  to.max_queue_size = options.max_queue_size;
  to.iteration_stats_size = options.iteration_stats_size;
  to.kv_events_size = options.kv_events_size;
  to.logits_processor = make_logits_processor(options.logits_processor);
  to.make_session = external_session_factory(options.session);
  to.log = make_log(options.log, options.log_user_data);
  if (to.make_session && (options.onnxruntime_path != nullptr || options.num_threads != 0 || options.kernel_level != nullptr)) {
    throw Error(ErrorCode::invalid_argument,
                "onnxruntime_path, num_threads and kernel_level are of the built-in session, and another one is given");
  }
  return to;
}

}  // namespace precast

void precast_engine_options_init(precast_engine_options_t* options, size_t struct_size) {
  precast::write_struct(precast::default_options(), options, struct_size);
}
