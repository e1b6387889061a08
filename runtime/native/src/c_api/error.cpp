#include "runtime/native/src/c_api/error.h"

namespace precast {

#define PRECAST_SAME_CODE(name, NAME) static_assert(static_cast<int>(ErrorCode::name) == PRECAST_ERROR_##NAME)
PRECAST_SAME_CODE(invalid_argument, INVALID_ARGUMENT);
PRECAST_SAME_CODE(not_found, NOT_FOUND);
PRECAST_SAME_CODE(io, IO);
PRECAST_SAME_CODE(corrupt_engine, CORRUPT_ENGINE);
PRECAST_SAME_CODE(unsupported_engine, UNSUPPORTED_ENGINE);
PRECAST_SAME_CODE(onnxruntime, ONNXRUNTIME);
PRECAST_SAME_CODE(resource_exhausted, RESOURCE_EXHAUSTED);
PRECAST_SAME_CODE(shut_down, SHUT_DOWN);
PRECAST_SAME_CODE(internal, INTERNAL);
PRECAST_SAME_CODE(forked, FORKED);
PRECAST_SAME_CODE(rank_failed, RANK_FAILED);
#undef PRECAST_SAME_CODE

namespace {

precast_error& out_of_memory_error() {
  // Short enough for std::string's own buffer: making it allocates nothing.
  static precast_error error{ErrorCode::resource_exhausted, "out of memory"};
  return error;
}

}  // namespace

precast_error_t* new_error(ErrorCode code, const std::string& message) noexcept {
  try {
    return new precast_error{code, message};
  } catch (const std::bad_alloc&) {
    return &out_of_memory_error();
  }
}

}  // namespace precast

precast_error_code_t precast_error_code(const precast_error_t* error) {
  return static_cast<precast_error_code_t>(error->code);
}

const char* precast_error_message(const precast_error_t* error) { return error->message.c_str(); }

void precast_error_delete(precast_error_t* error) {
  if (error != &precast::out_of_memory_error()) delete error;
}

precast_error_t* precast_error_new(precast_error_code_t code, const char* message) {
  const bool is_known = code >= PRECAST_ERROR_INVALID_ARGUMENT && code <= PRECAST_ERROR_RANK_FAILED;
  const auto known = is_known ? static_cast<precast::ErrorCode>(code) : precast::ErrorCode::internal;
  return precast::guarded([&] { throw precast::Error(known, message != nullptr ? message : ""); });
}
