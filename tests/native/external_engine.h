// An engine for the C API without ONNX Runtime: a manifest, and a session of the test's own that says that token t is
// followed by t + 1.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "precast.h"
#include "tests/native/check.h"
#include "tests/native/engine_files.h"

namespace precast::test {

/// Counts up, and may choose tokens itself, fail, or be called at any moment by what `on_collect` does.
class CountingTable {
 public:
  static constexpr std::int32_t vocab_size = 40;
  static constexpr std::int32_t poison = 39;  ///< a step with this token fails when it is collected
  static constexpr std::int32_t refused = 38; ///< a step with this token is refused when it is enqueued

  std::uint32_t max_in_flight = 1;
  std::uint32_t num_blocks = 64;
  bool chooses_tokens = false;
  std::function<void()> on_collect = [] {};

  precast_session_table_t table();

  // What has been called.
  int num_created = 0;
  int num_destroyed = 0;
  int num_cancelled = 0;
  std::size_t most_in_flight = 0;
  std::size_t num_token_sources = 0;
  precast_session_config_t config{};

 private:
  struct Step {
    const precast_step_t* view;
    std::uint64_t id;
  };

  precast_error_t* enqueue(const precast_step_t* step);
  precast_error_t* collect(std::uint64_t id, precast_step_result_t* result);

  std::deque<Step> in_flight_;
  std::map<std::uint64_t, std::vector<std::int32_t>> chosen_;  // of each step
  std::vector<float> logits_;
};

/// The directory of an engine that only such a session can run.
TemporaryDirectory& external_engine_directory();

}  // namespace precast::test
