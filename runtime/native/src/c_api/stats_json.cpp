#include "runtime/native/src/c_api/stats_json.h"

#include <optional>
#include <vector>

#include "runtime/native/src/json_writer.h"

namespace precast {

std::string to_json(const EngineStats& stats) {
  return JsonWriter()
      .add("steps", stats.steps)
      .add("num_active_requests", stats.num_active_requests)
      .add("num_queued_requests", stats.num_queued_requests)
      .add("num_completed_requests", stats.num_completed_requests)
      .add("num_preemptions", stats.num_preemptions)
      .add("num_blocks", stats.num_blocks)
      .add("num_free_blocks", stats.num_free_blocks)
      .add("num_cached_blocks", stats.num_cached_blocks)
      .add("tokens_per_block", stats.tokens_per_block)
      .add("prompt_tokens_computed", stats.prompt_tokens_computed)
      .add("prompt_tokens_reused", stats.prompt_tokens_reused)
      .add("output_tokens", stats.output_tokens)
      .add("allocated_blocks", stats.allocated_blocks)
      .add("reused_blocks", stats.reused_blocks)
      .add("missed_blocks", stats.missed_blocks)
      .add("last_step_ns", stats.last_step_ns)
      .add("last_step_num_tokens", stats.last_step_num_tokens)
      .add("last_step_num_sequences", stats.last_step_num_sequences)
      .finish();
}

namespace {

std::string to_json(const IterationStats& iteration) {
  const EngineStats& totals = iteration.totals;
  return JsonWriter()
      .add("iter", totals.steps)
      .add("timestamp_ns", iteration.timestamp_ns)
      .add("latency_ns", totals.last_step_ns)
      .add("num_new_active_requests", iteration.num_new_active_requests)
      .add("new_active_requests_queue_latency_ns", iteration.new_active_requests_queue_latency_ns)
      .add("num_active_requests", totals.num_active_requests)
      .add("num_queued_requests", totals.num_queued_requests)
      .add("num_completed_requests", totals.num_completed_requests)
      .add("num_paused_requests", totals.num_paused_requests)
      .add("num_scheduled_requests", totals.last_step_num_sequences)
      .add("num_context_requests", iteration.num_context_requests)
      .add("num_generation_requests", iteration.num_generation_requests)
      .add("num_context_tokens", iteration.num_context_tokens)
      .add("used_blocks", totals.num_blocks - totals.num_free_blocks)
      .add("free_blocks", totals.num_free_blocks)
      .add("max_blocks", totals.num_blocks)
      .add("tokens_per_block", totals.tokens_per_block)
      .add("allocated_blocks", totals.allocated_blocks)
      .add("reused_blocks", totals.reused_blocks)
      .add("missed_blocks", totals.missed_blocks)
      .finish();
}

RawJson to_json(const StoredBlock& block) {
  return {JsonWriter()
              .add("block_hash", to_hex(block.key))
              .add("tokens", block.token_ids)
              .add("priority", block.priority)
              .finish()};
}

std::string to_json(const KvEvent& event) {
  JsonWriter json;
  json.add("event_id", event.id);
  switch (event.kind) {
    case KvEvent::Kind::created:
      json.add("type", "created").add("num_blocks", event.num_blocks);
      break;
    case KvEvent::Kind::stored: {
      std::vector<RawJson> blocks;
      for (const StoredBlock& block : event.stored) blocks.push_back(to_json(block));
      const std::optional<std::string> parent = event.parent ? std::optional(to_hex(*event.parent)) : std::nullopt;
      json.add("type", "stored").add("parent_hash", parent).add("blocks", blocks);
      break;
    }
    case KvEvent::Kind::removed: {
      std::vector<std::string> keys;
      for (const BlockKey& key : event.removed) keys.push_back(to_hex(key));
      json.add("type", "removed").add("block_hashes", keys);
      break;
    }
    case KvEvent::Kind::updated:
      json.add("type", "updated").add("block_hash", to_hex(event.updated)).add("priority", event.priority);
      break;
  }
  return json.finish();
}

template <typename T>
std::string to_array(const std::list<T>& elements) {
  std::string text;
  for (const T& element : elements) text += (text.empty() ? "" : ", ") + to_json(element);
  return '[' + text + ']';
}

}  // namespace

std::string to_json(const std::list<IterationStats>& iterations) { return to_array(iterations); }

std::string to_json(const std::list<KvEvent>& events) { return to_array(events); }

}  // namespace precast
