// An engine for devices whose ranks are processes of precast_device_worker, with what it gives and says.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "precast.h"
#include "tests/native/check.h"
#include "tests/native/engine_files.h"
#include "tests/native/environment_scope.h"

namespace precast::test {

/// The path of precast_device_worker.
std::string device_worker();

/// What an error says, "" for none; and its code. Takes the error.
std::pair<std::string, precast_error_code_t> told(precast_error_t* error);

bool contains(const std::string& text, std::string_view part);

/// Whether this process has no child, ended or not.
bool has_no_child();

class DeviceWorld {
 public:
  using Settings = std::vector<std::pair<const char*, std::string>>;
  using Ids = std::vector<std::int32_t>;

  /// `settings` are what device_worker/main.cpp reads of its environment.
  explicit DeviceWorld(const DevicePlan& plan = {}, const Settings& settings = {});
  ~DeviceWorld();
  DeviceWorld(const DeviceWorld&) = delete;
  DeviceWorld& operator=(const DeviceWorld&) = delete;

  precast_error_t* try_load() { return precast_engine_new(path().c_str(), &options, &engine); }
  void load() { CHECK_EQ(told(try_load()).first, ""); }
  /// Ends the engine: what its ranks say at their ends has been logged then.
  void end();

  std::string path() const { return directory_.path().string(); }
  static precast_sampling_t greedy(std::uint32_t max_tokens);
  void submit(std::uint64_t id, const Ids& prompt, const precast_sampling_t& sampling, std::uint32_t n = 1);
  /// Waits until `count` requests have sent their last event.
  void wait(int count);
  std::string info() const;

  std::vector<std::string> lines();  ///< of the log so far
  /// The processes of ranks that have said that they are loaded.
  std::map<int, int> processes();
  /// A number that the rank's process has counted; -1: it has not said so.
  long seen(int rank, const std::string& name);

  using Sequence = std::pair<std::uint64_t, std::uint32_t>;

  precast_engine_options_t options{};
  precast_engine_t* engine = nullptr;
  std::map<Sequence, Ids> tokens;
  std::map<std::uint64_t, std::string> errors;
  std::map<std::uint64_t, precast_error_code_t> codes;
  std::map<Sequence, std::vector<std::pair<std::int32_t, float>>> logprobs;

 private:
  TemporaryDirectory directory_;
  std::string python_ = device_worker();
  std::vector<std::unique_ptr<EnvironmentScope>> environment_;
  std::mutex mutex_;
  std::vector<std::string> lines_;
};

}  // namespace precast::test
