// precast.h in terms of Engine.
#include <sys/types.h>
#include <unistd.h>

#include <cstring>
#include <functional>
#include <list>
#include <memory>
#include <string>
#include <vector>

#include "runtime/native/src/c_api/error.h"
#include "runtime/native/src/c_api/events.h"
#include "runtime/native/src/c_api/options.h"
#include "runtime/native/src/c_api/stats_json.h"
#include "runtime/native/src/c_api/submission.h"
#include "runtime/native/src/c_api/values.h"
#include "runtime/native/src/engine_loader.h"

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

template <typename Read>
precast_error_t* read_json(const precast_engine_t* engine, char** json, Read&& read) {
  return guarded([&] {
    precast::Engine& inner = engine_of(engine);
    require(json != nullptr, "json is NULL");
    *json = new_string(read(inner));
  });
}

/// What `take` of the engine gives is forgotten only when the caller has its JSON: there may be no memory for that.
template <typename T>
precast_error_t* take_json(const precast_engine_t* engine, char** json,
                           void (precast::Engine::*take)(const std::function<void(const std::list<T>&)>&)) {
  return guarded([&] {
    precast::Engine& inner = engine_of(engine);
    require(json != nullptr, "json is NULL");
    (inner.*take)([json](const std::list<T>& taken) { *json = new_string(precast::to_json(taken)); });
  });
}

}  // namespace

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
  return read_json(engine, json, [&](precast::Engine&) { return engine->loaded.info_json(); });
}

precast_error_t* precast_engine_stats(const precast_engine_t* engine, char** json) {
  return read_json(engine, json, [](precast::Engine& inner) { return precast::to_json(inner.stats()); });
}

precast_error_t* precast_engine_iteration_stats(const precast_engine_t* engine, char** json) {
  return take_json(engine, json, &precast::Engine::take_iteration_stats);
}

precast_error_t* precast_engine_kv_events(const precast_engine_t* engine, char** json) {
  return take_json(engine, json, &precast::Engine::take_kv_events);
}

precast_error_t* precast_engine_reset_prefix_cache(const precast_engine_t* engine) {
  return guarded([&] { engine_of(engine).reset_prefix_cache(); });
}

precast_error_t* precast_engine_event_fd(const precast_engine_t* engine, int* fd) {
  return guarded([&] {
    const precast::Engine& inner = engine_of(engine);
    require(fd != nullptr, "fd is NULL");
    *fd = inner.event_fd();
  });
}

precast_error_t* precast_engine_submit(const precast_engine_t* engine, const precast_request_t* const* requests,
                                       size_t count, uint32_t* queued) {
  return guarded([&] {
    precast::Engine& inner = engine_of(engine);
    require(requests != nullptr || count == 0, "requests is NULL");
    std::vector<precast::Submission> submissions;
    for (size_t i = 0; i < count; ++i) submissions.push_back(precast::to_submission(requests[i]));
    const bool accepted = inner.submit(std::move(submissions));
    if (queued != nullptr) {
      *queued = accepted ? 1 : 0;
    } else if (!accepted) {
      throw Error(ErrorCode::resource_exhausted, "the queue is full: try again when requests have started, or load the "
                                                 "engine with a larger max_queue_size");
    }
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
    auto* to = reinterpret_cast<unsigned char*>(events);
    *count = inner.wait(capacity, timeout_ns, [&](const precast::Event& event) {
      const precast_event_t written = precast::to_event(event);
      std::memset(to, 0, event_size);
      std::memcpy(to, &written, sizeof written);
      to += event_size;
    });
  });
}
