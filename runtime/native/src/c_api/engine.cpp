// precast.h in terms of Engine.
#include <sys/types.h>
#include <unistd.h>

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "runtime/native/src/c_api/error.h"
#include "runtime/native/src/c_api/options.h"
#include "runtime/native/src/c_api/structs.h"
#include "runtime/native/src/c_api/values.h"
#include "runtime/native/src/engine_loader.h"
#include "runtime/native/src/json_writer.h"

using precast::concat;
using precast::Error;
using precast::ErrorCode;
using precast::guarded;
using precast::new_string;
using precast::require;
using precast::require_own_process;

struct precast_engine {
  precast::LoadedEngine loaded;
  pid_t pid = getpid();
};

namespace {

precast::Engine& engine_of(const precast_engine_t* handle) {
  require(handle != nullptr, "engine is NULL");
  require_own_process(handle->pid);
  return *handle->loaded.engine;
}

precast_sampling_t default_sampling() {
  precast_sampling_t sampling{};
  sampling.struct_size = sizeof sampling;
  sampling.max_tokens = 32;
  sampling.temperature = 1.0F;
  sampling.top_p = 1.0F;
  return sampling;
}

precast_request_t default_request() {
  precast_request_t request{};
  request.struct_size = sizeof request;
  return request;
}

// A field that holds more than int32 can is caught here, where its name is still known.
std::int32_t to_int32(std::uint32_t value, std::uint64_t id, const char* name) {
  if (value > INT32_MAX) throw Error(ErrorCode::invalid_argument, concat("request ", id, ": ", name, " is ", value));
  return static_cast<std::int32_t>(value);
}

precast::Submission to_submission(const precast_request_t* from) {
  require(from != nullptr, "an entry of requests is NULL");
  precast_request_t request = default_request();
  precast::read_struct(from, "precast_request_t", request);
  precast_sampling_t sampling = default_sampling();
  precast::read_struct(request.sampling, "precast_sampling_t", sampling);
  require(request.prompt_token_ids != nullptr || request.num_prompt_tokens == 0, "prompt_token_ids is NULL");
  require(sampling.stop_token_ids != nullptr || sampling.num_stop_token_ids == 0, "stop_token_ids is NULL");

  precast::Submission to;
  to.id = request.id;
  to.prompt_token_ids.assign(request.prompt_token_ids, request.prompt_token_ids + request.num_prompt_tokens);
  to.max_tokens = to_int32(sampling.max_tokens, request.id, "max_tokens");
  to.ignore_eos = sampling.ignore_eos != 0;
  to.sampling.temperature = sampling.temperature;
  to.sampling.top_k = to_int32(sampling.top_k, request.id, "top_k");
  to.sampling.top_p = sampling.top_p;
  to.sampling.seed = sampling.seed;
  to.sampling.stop_token_ids.assign(sampling.stop_token_ids, sampling.stop_token_ids + sampling.num_stop_token_ids);
  return to;
}

precast_event_t to_event(const precast::Event& from) {
  precast_event_t to{};
  to.request_id = from.request_id;
  to.kind = from.finish_reason == precast::FinishReason::none ? PRECAST_EVENT_TOKEN : PRECAST_EVENT_FINISHED;
  to.finish_reason = static_cast<precast_finish_reason_t>(from.finish_reason);
  to.token_id = from.token_id;
  to.stop_token_id = from.stop_token_id;
  to.num_prompt_tokens = from.num_prompt_tokens;
  to.num_output_tokens = from.num_output_tokens;
  to.time_ns = from.time_ns;
  if (from.error) to.error = precast::new_error(from.error->code(), from.error->what());
  return to;
}

std::string to_json(const precast::EngineStats& stats) {
  return precast::JsonWriter()
      .add("steps", stats.steps)
      .add("num_active_requests", stats.num_active_requests)
      .add("num_queued_requests", stats.num_queued_requests)
      .add("num_completed_requests", stats.num_completed_requests)
      .add("num_blocks", stats.num_blocks)
      .add("num_free_blocks", stats.num_free_blocks)
      .add("tokens_per_block", stats.tokens_per_block)
      .add("prompt_tokens_computed", stats.prompt_tokens_computed)
      .add("output_tokens", stats.output_tokens)
      .add("last_step_ns", stats.last_step_ns)
      .add("last_step_num_tokens", stats.last_step_num_tokens)
      .add("last_step_num_sequences", stats.last_step_num_sequences)
      .finish();
}

}  // namespace

void precast_sampling_init(precast_sampling_t* sampling, size_t struct_size) {
  precast::write_struct(default_sampling(), sampling, struct_size);
}

void precast_request_init(precast_request_t* request, size_t struct_size) {
  precast::write_struct(default_request(), request, struct_size);
}

precast_error_t* precast_engine_new(const char* path, const precast_engine_options_t* options, precast_engine_t** engine) {
  return guarded([&] {
    require(path != nullptr, "path is NULL");
    require(engine != nullptr, "engine is NULL");
    auto handle = std::make_unique<precast_engine>();
    handle->loaded = precast::load_engine(path, precast::to_options(options));
    *engine = handle.release();
  });
}

void precast_engine_delete(precast_engine_t* engine) {
  if (engine == nullptr) return;
  // In a fork the engine's thread does not exist and its locks may be held for ever: leave all that alone.
  if (engine->pid != getpid()) static_cast<void>(engine->loaded.engine.release());
  delete engine;
}

precast_error_t* precast_engine_shutdown(const precast_engine_t* engine) {
  return guarded([&] { engine_of(engine).shutdown(); });
}

precast_error_t* precast_engine_info(const precast_engine_t* engine, char** json) {
  return guarded([&] {
    engine_of(engine);
    require(json != nullptr, "json is NULL");
    *json = new_string(engine->loaded.info_json());
  });
}

precast_error_t* precast_engine_stats(const precast_engine_t* engine, char** json) {
  return guarded([&] {
    const precast::EngineStats stats = engine_of(engine).stats();
    require(json != nullptr, "json is NULL");
    *json = new_string(to_json(stats));
  });
}

precast_error_t* precast_engine_submit(const precast_engine_t* engine, const precast_request_t* const* requests,
                                       size_t count) {
  return guarded([&] {
    precast::Engine& inner = engine_of(engine);
    require(requests != nullptr || count == 0, "requests is NULL");
    std::vector<precast::Submission> submissions;
    for (size_t i = 0; i < count; ++i) submissions.push_back(to_submission(requests[i]));
    inner.submit(std::move(submissions));
  });
}

precast_error_t* precast_engine_cancel(const precast_engine_t* engine, uint64_t id, uint32_t* found) {
  return guarded([&] {
    const bool was_found = engine_of(engine).cancel(id);
    if (found != nullptr) *found = was_found ? 1 : 0;
  });
}

precast_error_t* precast_engine_wait(const precast_engine_t* engine, precast_event_t* events, size_t event_size,
                                     size_t capacity, int64_t timeout_ns, size_t* count) {
  return guarded([&] {
    precast::Engine& inner = engine_of(engine);
    require(count != nullptr, "count is NULL");
    require(events != nullptr && capacity > 0, "events is NULL or capacity is 0: there is no room for an event");
    // The first published version is the smallest that can ever be asked for.
    require(event_size >= sizeof(precast_event_t), "event_size is smaller than precast_event_t");
    const std::vector<precast::Event> taken = inner.wait(capacity, timeout_ns);
    auto* to = reinterpret_cast<unsigned char*>(events);
    for (const precast::Event& event : taken) {
      const precast_event_t written = to_event(event);
      std::memset(to, 0, event_size);
      std::memcpy(to, &written, sizeof written);
      to += event_size;
    }
    *count = taken.size();
  });
}
