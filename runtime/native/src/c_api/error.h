#pragma once

#include <exception>
#include <new>
#include <string>
#include <utility>

#include "precast.h"
#include "runtime/native/src/error.h"

struct precast_error {
  precast::ErrorCode code;
  std::string message;
};

namespace precast {

/// An error for the caller to own. Where there is no memory for it, a static one that _delete leaves alone.
precast_error_t* new_error(ErrorCode code, const std::string& message) noexcept;

/// What a callback of the caller reports, which is the library's from now on.
inline Error take_error(precast_error_t* error) {
  Error taken(error->code, error->message);
  precast_error_delete(error);
  return taken;
}

/// Runs `body` and turns what it throws into an error: exceptions never cross the C API.
template <typename Body>
precast_error_t* guarded(Body&& body) noexcept {
  try {
    std::forward<Body>(body)();
    return nullptr;
  } catch (const Error& error) {
    return new_error(error.code(), error.what());
  } catch (const std::bad_alloc&) {
    return new_error(ErrorCode::resource_exhausted, "there is no memory left for this call");
  } catch (const std::exception& error) {
    return new_error(ErrorCode::internal, error.what());
  }
}

}  // namespace precast
