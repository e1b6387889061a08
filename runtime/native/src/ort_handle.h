#pragma once

#include <memory>
#include <string_view>
#include <utility>

#include "runtime/native/src/ort_abi.h"

namespace precast::ort {

/// Throws Error(onnxruntime), "ONNX Runtime cannot <task>: <its own text>", unless `status` is null. Releases the status.
void check(const Api& api, Status* status, std::string_view task);

/// Owns an object of ONNX Runtime.
template <typename T>
using Handle = std::unique_ptr<T, void (*)(T*)>;

/// The object that `create(T** out) -> Status*` makes. Throws like check.
template <typename T, typename Create>
Handle<T> make(const Api& api, void (*release)(T*), std::string_view task, Create&& create) {
  T* object = nullptr;
  check(api, std::forward<Create>(create)(&object), task);
  return {object, release};
}

}  // namespace precast::ort
