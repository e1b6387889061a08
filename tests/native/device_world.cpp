#include "tests/native/device_world.h"

#include <sys/wait.h>

#include <cerrno>
#include <cstdlib>

#include "tests/native/waiting.h"

namespace precast::test {

std::string device_worker() { return PRECAST_DEVICE_WORKER; }

std::pair<std::string, precast_error_code_t> told(precast_error_t* error) {
  if (error == nullptr) return {"", 0};
  std::pair<std::string, precast_error_code_t> all{precast_error_message(error), precast_error_code(error)};
  precast_error_delete(error);
  return all;
}

bool contains(const std::string& text, std::string_view part) { return text.find(part) != std::string::npos; }

bool has_no_child() { return ::waitpid(-1, nullptr, WNOHANG) == -1 && errno == ECHILD; }

DeviceWorld::DeviceWorld(const DevicePlan& plan, const Settings& settings) {
  directory_.write("engine.json", device_manifest_text(plan));
  for (int rank = 0; rank < plan.world_size(); ++rank) {
    directory_.write("rank" + std::to_string(rank) + "/model.plan", "plan");
  }
  const std::string results_rank = std::to_string(plan.world_size() - plan.tensor_parallel_size);
  environment_.push_back(std::make_unique<EnvironmentScope>("DEVICE_RESULTS_RANK", results_rank.c_str()));
  for (const auto& [name, value] : settings) {
    environment_.push_back(std::make_unique<EnvironmentScope>(name, value.c_str()));
  }
  precast_engine_options_init(&options, sizeof options);
  options.python_path = python_.c_str();
  options.max_batch_size = 4;
  options.max_num_tokens = 8;
  options.log_user_data = this;
  options.log = [](void* user_data, precast_log_level_t, const char* message) {
    auto* const self = static_cast<DeviceWorld*>(user_data);
    const std::lock_guard lock(self->mutex_);
    self->lines_.emplace_back(message);
  };
}

DeviceWorld::~DeviceWorld() { end(); }

void DeviceWorld::end() { precast_engine_delete(std::exchange(engine, nullptr)); }

precast_sampling_t DeviceWorld::greedy(std::uint32_t max_tokens) {
  precast_sampling_t sampling;
  precast_sampling_init(&sampling, sizeof sampling);
  sampling.temperature = 0.0F;
  sampling.max_tokens = max_tokens;
  return sampling;
}

void DeviceWorld::submit(std::uint64_t id, const Ids& prompt, const precast_sampling_t& sampling, std::uint32_t n) {
  precast_request_t request;
  precast_request_init(&request, sizeof request);
  request.id = id;
  request.prompt_token_ids = prompt.data();
  request.num_prompt_tokens = prompt.size();
  request.sampling = &sampling;
  request.n = n;
  const precast_request_t* const pointer = &request;
  CHECK_EQ(told(precast_engine_submit(engine, &pointer, 1, nullptr)).first, "");
}

void DeviceWorld::wait(int count) {
  while (count > 0) {
    precast_event_t event;
    std::size_t num_events = 0;
    CHECK_EQ(told(precast_engine_wait(engine, &event, sizeof event, 1, patience_ns, &num_events)).first, "");
    CHECK_EQ(num_events, 1U);
    const Sequence sequence{event.request_id, event.sequence};
    if (event.kind == PRECAST_EVENT_TOKEN) tokens[sequence].push_back(event.token_id);
    if (event.error != nullptr) {
      errors[event.request_id] = precast_error_message(event.error);
      codes[event.request_id] = precast_error_code(event.error);
    }
    for (std::size_t k = 0; k < event.num_logprobs; ++k) {
      logprobs[sequence].emplace_back(event.logprobs[k].token_id, event.logprobs[k].logprob);
    }
    count -= static_cast<int>(event.is_last);
    precast_event_clear(&event, sizeof event);
  }
}

std::string DeviceWorld::info() const {
  char* text = nullptr;
  CHECK_EQ(told(precast_engine_info(engine, &text)).first, "");
  std::string copy = text;
  precast_string_delete(text);
  return copy;
}

std::vector<std::string> DeviceWorld::lines() {
  const std::lock_guard lock(mutex_);
  return lines_;
}

std::map<int, int> DeviceWorld::processes() {
  std::map<int, int> ids;
  for (const std::string& line : lines()) {
    int rank = 0;
    int id = 0;
    if (!contains(line, ": loaded on ")) continue;
    if (std::sscanf(line.c_str(), "rank %d (process %d): ", &rank, &id) == 2) ids[rank] = id;
  }
  return ids;
}

long DeviceWorld::seen(int rank, const std::string& name) {
  for (const std::string& line : lines()) {
    if (!line.starts_with("rank " + std::to_string(rank) + " ") || !contains(line, ": seen: ")) continue;
    const std::size_t at = line.find(" " + name + "=");
    if (at != std::string::npos) return std::atol(line.c_str() + at + name.size() + 2);
  }
  return -1;
}

}  // namespace precast::test
