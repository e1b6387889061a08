#include "tests/native/external_engine.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "tests/native/candidates_of.h"

namespace precast::test {

precast_session_table_t CountingTable::table() {
  precast_session_table_t made{};
  made.struct_size = sizeof made;
  made.version = 1;
  made.user_data = this;
  made.create = [](void* user_data, const precast_session_config_t* wanted, precast_session_properties_t* properties,
                   void** session) -> precast_error_t* {
    auto* self = static_cast<CountingTable*>(user_data);
    ++self->num_created;
    self->config = *wanted;
    properties->num_blocks = self->num_blocks;
    properties->max_in_flight = self->max_in_flight;
    properties->chooses_tokens = self->chooses_tokens ? 1 : 0;
    if (self->max_candidates > 0) properties->max_candidates = self->max_candidates;  // else as an older session, which has none
    *session = self;
    return nullptr;
  };
  made.enqueue = [](void* session, const precast_step_t* step) {
    return static_cast<CountingTable*>(session)->enqueue(step);
  };
  made.collect = [](void* session, std::uint64_t id, precast_step_result_t* result) {
    return static_cast<CountingTable*>(session)->collect(id, result);
  };
  made.cancel = [](void* session, std::uint64_t) { ++static_cast<CountingTable*>(session)->num_cancelled; };
  made.destroy = [](void* session) { ++static_cast<CountingTable*>(session)->num_destroyed; };
  return made;
}

precast_error_t* CountingTable::enqueue(const precast_step_t* step) {
  CHECK_EQ(step->struct_size, sizeof *step);
  CHECK_EQ(step->query_starts[step->num_sequences], static_cast<std::int32_t>(step->num_tokens));
  CHECK_EQ(step->num_kv_groups, 1U);
  for (std::size_t i = 0; i < step->num_tokens; ++i) {
    if (step->token_ids[i] == refused) return precast_error_new(PRECAST_ERROR_RESOURCE_EXHAUSTED, "no room for this step");
  }
  in_flight_.push_back({step, step->id});
  most_in_flight = std::max(most_in_flight, in_flight_.size());
  num_token_sources += step->num_token_sources;
  return nullptr;
}

precast_error_t* CountingTable::collect(std::uint64_t id, precast_step_result_t* result) {
  on_collect();
  const Step step = in_flight_.front();
  in_flight_.pop_front();
  CHECK_EQ(step.id, id);
  const precast_step_t& view = *step.view;
  std::vector<std::int32_t> tokens(view.token_ids, view.token_ids + view.num_tokens);
  for (std::size_t i = 0; i < view.num_token_sources; ++i) {
    const precast_token_source_t& source = view.token_sources[i];
    std::int32_t& token = tokens.at(static_cast<std::size_t>(source.row));
    CHECK_EQ(token, -1);
    token = chosen_.at(source.source_step).at(static_cast<std::size_t>(source.source_row));
  }
  for (const std::int32_t token : tokens) CHECK(token >= 0 && token < vocab_size);
  if (std::ranges::find(tokens, poison) != tokens.end()) return precast_error_new(PRECAST_ERROR_IO, "poisoned");
  std::vector<std::int32_t>& chosen = chosen_[id];
  given_.clear();
  logits_.clear();
  candidate_ids_.clear();
  candidate_logits_.clear();
  log_sums_.clear();
  for (std::size_t r = 0; r < view.num_logit_rows; ++r) {
    const std::int32_t next = (tokens.at(static_cast<std::size_t>(view.logit_rows[r])) + 1) % vocab_size;
    chosen.push_back(next);
    given_.push_back(next == last + 1 ? -1 : next);
    std::vector<float> row(vocab_size, 0.0F);
    row[static_cast<std::size_t>(next)] = 4.0F;
    CHECK(view.needs_logits[r] == 0 || view.num_candidates[r] == 0);
    if (view.needs_logits[r] != 0) {
      logits_.insert(logits_.end(), row.begin(), row.end());
      ++num_whole_rows;
    } else if (view.num_candidates[r] > 0) {
      give_candidates(row, view.num_candidates[r]);
    }
  }
  chosen_.erase(chosen_.begin(), chosen_.lower_bound(id > 8 ? id - 8 : 0));
  result->logits = logits_.data();
  result->token_ids = given_.data();
  if (max_candidates == 0) return nullptr;
  result->candidate_ids = candidate_ids_.data();
  result->candidate_logits = candidate_logits_.data();
  result->log_sums = log_sums_.data();
  spoil(*result);
  return nullptr;
}

/// Behind what is asked for stands what nobody may look at.
void CountingTable::give_candidates(const std::vector<float>& row, std::int32_t count) {
  CHECK(count <= static_cast<std::int32_t>(max_candidates));
  const FoundCandidates found = candidates_of(row, static_cast<std::size_t>(count));
  ++num_rows_of_candidates;
  log_sums_.push_back(found.log_sum);
  candidate_ids_.insert(candidate_ids_.end(), found.ids.begin(), found.ids.end());
  candidate_ids_.resize(log_sums_.size() * max_candidates, -7);
  candidate_logits_.insert(candidate_logits_.end(), found.logits.begin(), found.logits.end());
  candidate_logits_.resize(log_sums_.size() * max_candidates, std::nanf(""));
}

TemporaryDirectory& external_engine_directory() {
  static TemporaryDirectory directory;
  static const bool written = [] {
    directory.write("rank0/model.plan", "plan");
    directory.write("rank0/weights.bin", "weights");
    const std::string hash(64, '0');
    directory.write("engine.json", R"({
      "format": 1, "precast_version": "0.1.0", "requires": ["somebody.elses.Op/9"], "backend": "onnxruntime",
      "backend_requirements": {"onnxruntime_min": "1.23", "ir_version": 10, "opset": 20},
      "batch_invariant": true, "reproducible": true,
      "model": {"architecture": "CountingForTests", "vocab_size": 40, "hidden_size": 8, "num_layers": 1,
                "max_seq_len": 64, "bos_token_id": null, "pad_token_id": null, "eos_token_ids": [37]},
      "build": {"dtype": "float32", "kv_cache_dtype": "float32", "tokens_per_block": 4, "max_seq_len": null, "notes": []},
      "mapping": {"tensor_parallel_size": 1, "pipeline_parallel_size": 1, "world_size": 1},
      "ranks": [{"graph": "rank0/model.plan", "weights": "rank0/weights.bin",
                 "kv_groups": [{"block_tables": "block_tables.0", "window": null}],
                 "kv_caches": [{"name": "kv.0", "layout": "somebody.elses.Layout/9", "block_bytes": 64, "group": 0}]}],
      "files": {"rank0/model.plan": {"size": 4, "sha256": ")" + hash + R"("},
                "rank0/weights.bin": {"size": 7, "sha256": ")" + hash + R"("}}
    })");
    return true;
  }();
  CHECK(written);
  return directory;
}

}  // namespace precast::test
