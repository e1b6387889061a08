// Events on their way to the caller, who owns what they point to.
#include "runtime/native/src/c_api/events.h"

#include <algorithm>
#include <cstring>
#include <memory>

#include "runtime/native/src/c_api/error.h"

namespace precast {
namespace {

std::unique_ptr<precast_logprob_t[]> to_logprobs(const std::vector<TokenLogprob>& from) {
  if (from.empty()) return nullptr;
  auto to = std::make_unique<precast_logprob_t[]>(from.size());
  for (std::size_t i = 0; i < from.size(); ++i) {
    to[i] = {from[i].token_id, from[i].logprob, static_cast<std::uint32_t>(from[i].rank)};
  }
  return to;
}

}  // namespace

precast_event_t to_event(const Event& from) {
  precast_event_t to{};
  to.request_id = from.request_id;
  to.sequence = from.sequence;
  to.kind = from.finish_reason == FinishReason::none ? PRECAST_EVENT_TOKEN : PRECAST_EVENT_FINISHED;
  to.finish_reason = static_cast<precast_finish_reason_t>(from.finish_reason);
  to.token_id = from.token_id;
  to.stop_token_id = from.stop_token_id;
  to.is_last = from.is_last ? 1 : 0;
  to.num_prompt_tokens = from.num_prompt_tokens;
  to.num_output_tokens = from.num_output_tokens;
  to.num_cached_tokens = from.num_cached_tokens;
  to.num_preemptions = from.num_preemptions;
  to.time_ns = from.time_ns;
  to.first_scheduled_ns = from.first_scheduled_ns;
  auto logprobs = to_logprobs(from.logprobs);
  if (from.error) to.error = new_error(from.error->code(), from.error->what());
  to.logprobs = logprobs.release();
  to.num_logprobs = from.logprobs.size();
  return to;
}

}  // namespace precast

void precast_event_clear(precast_event_t* event, size_t event_size) {
  // A caller of an older version has an event that ends before some of these fields: then it owns nothing there.
  precast_event_t known{};
  std::memcpy(&known, event, std::min(event_size, sizeof known));
  precast_error_delete(known.error);
  delete[] known.logprobs;
  known.error = nullptr;
  known.logprobs = nullptr;
  known.num_logprobs = 0;
  std::memcpy(static_cast<void*>(event), &known, std::min(event_size, sizeof known));
}
