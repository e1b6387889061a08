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

  static constexpr std::int32_t last = 36;    ///< behind this token it chooses none, as for a row with NaN

  std::uint32_t max_in_flight = 1;
  std::uint32_t num_blocks = 64;
  bool chooses_tokens = false;
  std::uint32_t max_candidates = 0;
  std::function<void(precast_step_result_t&)> spoil = [](precast_step_result_t&) {};  ///< before a result is given
  std::function<void()> on_collect = [] {};

  precast_session_table_t table();

  // What has been called.
  int num_created = 0;
  int num_destroyed = 0;
  int num_cancelled = 0;
  std::size_t most_in_flight = 0;
  std::size_t num_token_sources = 0;
  std::size_t num_whole_rows = 0;
  std::size_t num_rows_of_candidates = 0;
  precast_session_config_t config{};

 private:
  struct Step {
    const precast_step_t* view;
    std::uint64_t id;
  };

  precast_error_t* enqueue(const precast_step_t* step);
  precast_error_t* collect(std::uint64_t id, precast_step_result_t* result);
  void give_candidates(const std::vector<float>& row, std::int32_t count);

  std::deque<Step> in_flight_;
  std::map<std::uint64_t, std::vector<std::int32_t>> chosen_;  // of each step, what later ones go on with
  std::vector<std::int32_t> given_;                            // of the latest collected
  std::vector<float> logits_;
  std::vector<std::int32_t> candidate_ids_;
  std::vector<float> candidate_logits_;
  std::vector<float> log_sums_;
};

/// The directory of an engine that only such a session can run.
TemporaryDirectory& external_engine_directory();

}  // namespace precast::test
