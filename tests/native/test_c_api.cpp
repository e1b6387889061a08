// precast.h where no engine is needed: arguments, structs that grow, ownership. With an engine: tests/runtime, examples.
#include <cstring>
#include <string>

#include "precast.h"
#include "tests/native/check.h"

namespace {

/// Code and message of an error, which is released. Code 0: there was none.
struct Answer {
  explicit Answer(precast_error_t* error) {
    if (error == nullptr) return;
    code = precast_error_code(error);
    message = precast_error_message(error);
    precast_error_delete(error);
  }

  precast_error_code_t code = 0;
  std::string message;
};

Answer load(const char* path, const precast_engine_options_t* options = nullptr) {
  precast_engine_t* engine = nullptr;
  return Answer(precast_engine_new(path, options, &engine));
}

/// The options of a caller whose header is newer: one field more.
struct NewerOptions {
  precast_engine_options_t known;
  uint64_t unknown;
};

}  // namespace

TEST("the loaded library says its version, as number and as text") {
  CHECK_EQ(precast_version(), static_cast<uint32_t>(PRECAST_VERSION));
  const std::string text = std::to_string(PRECAST_VERSION_MAJOR) + "." + std::to_string(PRECAST_VERSION_MINOR) + "." +
                           std::to_string(PRECAST_VERSION_PATCH);
  CHECK_EQ(std::string(precast_version_string()), text);
}

TEST("a missing engine and missing arguments are errors with a code and a sentence") {
  CHECK_EQ(load(nullptr).code, PRECAST_ERROR_INVALID_ARGUMENT);
  const Answer missing = load("/nonexistent/engine");
  CHECK_EQ(missing.code, PRECAST_ERROR_NOT_FOUND);
  CHECK(missing.message.find("/nonexistent/engine") != std::string::npos);
  CHECK_EQ(Answer(precast_engine_new("/nonexistent/engine", nullptr, nullptr)).code, PRECAST_ERROR_INVALID_ARGUMENT);
  CHECK_EQ(Answer(precast_engine_shutdown(nullptr)).code, PRECAST_ERROR_INVALID_ARGUMENT);
  CHECK_EQ(Answer(precast_engine_submit(nullptr, nullptr, 0, nullptr)).code, PRECAST_ERROR_INVALID_ARGUMENT);
  char* json = nullptr;
  CHECK_EQ(Answer(precast_engine_stats(nullptr, &json)).code, PRECAST_ERROR_INVALID_ARGUMENT);
  precast_model_t* model = nullptr;
  CHECK_EQ(Answer(precast_model_new("/nonexistent/engine", nullptr, &model)).code, PRECAST_ERROR_NOT_FOUND);
  CHECK(model == nullptr);
}

TEST("deleting nothing does nothing") {
  precast_engine_delete(nullptr);
  precast_model_delete(nullptr);
  precast_error_delete(nullptr);
  precast_string_delete(nullptr);
}

TEST("the defaults are those that the header names") {
  precast_engine_options_t options;
  precast_engine_options_init(&options, sizeof options);
  CHECK_EQ(options.struct_size, sizeof options);
  CHECK_EQ(options.max_batch_size, 64U);
  CHECK_EQ(options.max_num_tokens, 2048U);
  CHECK(options.onnxruntime_path == nullptr && options.kernel_level == nullptr);
  precast_sampling_t sampling;
  precast_sampling_init(&sampling, sizeof sampling);
  CHECK_EQ(sampling.max_tokens, 32U);
  CHECK_EQ(sampling.temperature, 1.0F);
  CHECK_EQ(sampling.top_p, 1.0F);
  CHECK_EQ(sampling.top_k + sampling.ignore_eos, 0U);
  precast_request_t request;
  precast_request_init(&request, sizeof request);
  CHECK_EQ(request.struct_size, sizeof request);
  CHECK(request.sampling == nullptr);
}

TEST("an older caller's struct is filled no further than it reaches") {
  unsigned char memory[sizeof(precast_engine_options_t)];
  std::memset(memory, 0xAB, sizeof memory);
  const size_t older = offsetof(precast_engine_options_t, max_seq_len);
  precast_engine_options_init(reinterpret_cast<precast_engine_options_t*>(memory), older);
  CHECK_EQ(static_cast<int>(memory[older]), 0xAB);
  CHECK_EQ(load("/nonexistent/engine", reinterpret_cast<precast_engine_options_t*>(memory)).code, PRECAST_ERROR_NOT_FOUND);
}

TEST("a newer caller may leave what this library does not know at zero, and nothing else") {
  NewerOptions options;
  precast_engine_options_init(&options.known, sizeof options);
  CHECK_EQ(options.unknown, 0U);
  CHECK_EQ(load("/nonexistent/engine", &options.known).code, PRECAST_ERROR_NOT_FOUND);
  options.unknown = 1;
  const Answer refused = load("/nonexistent/engine", &options.known);
  CHECK_EQ(refused.code, PRECAST_ERROR_INVALID_ARGUMENT);
  CHECK(refused.message.find("older") != std::string::npos);
}

TEST("a struct that was never initialised is refused") {
  precast_engine_options_t options{};
  const Answer refused = load("/nonexistent/engine", &options);
  CHECK_EQ(refused.code, PRECAST_ERROR_INVALID_ARGUMENT);
  CHECK(refused.message.find("_init") != std::string::npos);
}

TEST("a token budget smaller than the batch is refused before anything is read") {
  precast_engine_options_t options;
  precast_engine_options_init(&options, sizeof options);
  options.max_batch_size = 65;
  options.max_num_tokens = 64;
  CHECK_EQ(load("/nonexistent/engine", &options).code, PRECAST_ERROR_INVALID_ARGUMENT);
}
