#include "runtime/native/src/c_api/submission.h"

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/native/src/c_api/structs.h"
#include "runtime/native/src/c_api/values.h"
#include "runtime/native/src/concat.h"

namespace precast {
namespace {

// A field that holds more than int32 can is caught here, where its name is still known.
std::int32_t to_int32(std::uint32_t value, std::uint64_t id, const char* name) {
  if (value > INT32_MAX) throw Error(ErrorCode::invalid_argument, concat("request ", id, ": ", name, " is ", value));
  return static_cast<std::int32_t>(value);
}

std::int64_t to_int64(std::uint64_t value, std::uint64_t id, const char* name) {
  if (value > INT64_MAX) throw Error(ErrorCode::invalid_argument, concat("request ", id, ": ", name, " is ", value));
  return static_cast<std::int64_t>(value);
}

/// The caller's array as a vector.
template <typename T>
std::vector<T> to_vector(const T* values, std::size_t count, const char* if_null) {
  require(values != nullptr || count == 0, if_null);
  return std::vector<T>(values, values + count);
}

SamplingParams to_sampling(const precast_sampling_t& from, std::uint64_t id) {
  SamplingParams to;
  to.min_tokens = to_int32(from.min_tokens, id, "min_tokens");
  to.temperature = from.temperature;
  to.top_k = to_int32(from.top_k, id, "top_k");
  to.top_p = from.top_p;
  to.min_p = from.min_p;
  to.repetition_penalty = from.repetition_penalty;
  to.presence_penalty = from.presence_penalty;
  to.frequency_penalty = from.frequency_penalty;
  to.seed = from.seed;
  to.num_logprobs = from.num_logprobs;
  to.stop_token_ids = to_vector(from.stop_token_ids, from.num_stop_token_ids, "stop_token_ids is NULL");
  to.allowed_token_ids = to_vector(from.allowed_token_ids, from.num_allowed_token_ids, "allowed_token_ids is NULL");
  for (const precast_token_sequence_t& word : to_vector(from.bad_words, from.num_bad_words, "bad_words is NULL")) {
    to.bad_words.push_back(to_vector(word.token_ids, word.num_token_ids, "token_ids of an entry of bad_words is NULL"));
  }
  for (const precast_logit_bias_t& bias : to_vector(from.logit_bias, from.num_logit_bias, "logit_bias is NULL")) {
    to.logit_bias.push_back({bias.token_id, bias.bias});
  }
  return to;
}

}  // namespace

precast_sampling_t default_sampling() {
  precast_sampling_t sampling{};
  sampling.struct_size = sizeof sampling;
  sampling.max_tokens = 32;
  sampling.temperature = 1.0F;
  sampling.top_p = 1.0F;
  sampling.repetition_penalty = 1.0F;
  sampling.num_logprobs = -1;
  return sampling;
}

precast_request_t default_request() {
  precast_request_t request{};
  request.struct_size = sizeof request;
  request.n = 1;
  request.priority = 0.5F;
  return request;
}

Submission to_submission(const precast_request_t* from) {
  require(from != nullptr, "an entry of requests is NULL");
  precast_request_t request = default_request();
  read_struct(from, "precast_request_t", request);
  precast_sampling_t sampling = default_sampling();
  read_struct(request.sampling, "precast_sampling_t", sampling);
  require(request.cache_salt != nullptr || request.cache_salt_size == 0, "cache_salt is NULL");

  Submission to;
  to.id = request.id;
  to.prompt_token_ids = to_vector(request.prompt_token_ids, request.num_prompt_tokens, "prompt_token_ids is NULL");
  to.sampling = to_sampling(sampling, request.id);
  to.max_tokens = to_int32(sampling.max_tokens, request.id, "max_tokens");
  to.ignore_eos = sampling.ignore_eos != 0;
  to.n = request.n;
  to.priority = request.priority;
  to.deadline_ns = request.deadline_ns;
  if (request.cache_salt_size != 0) {
    to.cache_salt.assign(static_cast<const char*>(request.cache_salt), request.cache_salt_size);
  }
  to.skip_block_reuse = request.skip_block_reuse != 0;
  to.use_logits_processor = request.use_logits_processor != 0;
  for (const precast_retention_t& range : to_vector(request.retention, request.num_retention, "retention is NULL")) {
    to.retention.push_back({range.start_token, range.end_token, range.priority,
                            to_int64(range.duration_ns, request.id, "duration_ns of a retention")});
  }
  return to;
}

}  // namespace precast

void precast_sampling_init(precast_sampling_t* sampling, size_t struct_size) {
  precast::write_struct(precast::default_sampling(), sampling, struct_size);
}

void precast_request_init(precast_request_t* request, size_t struct_size) {
  precast::write_struct(precast::default_request(), request, struct_size);
}
