#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <string>

#include "runtime/native/src/concat.h"
#include "runtime/native/src/error.h"

namespace precast {

/// A caller's struct as this library knows it: fields that an older caller does not have keep the defaults of `value`.
/// Throws Error(invalid_argument) for a struct that was not initialised, or sets fields that this library does not know.
template <typename T>
void read_struct(const T* from, const char* type, T& value) {
  if (from == nullptr) return;
  const std::size_t size = from->struct_size;
  if (size < sizeof(std::size_t)) {
    throw Error(ErrorCode::invalid_argument, concat(type, ".struct_size is ", size, ": call its _init function first"));
  }
  const auto* bytes = reinterpret_cast<const unsigned char*>(from);
  if (size > sizeof(T) && std::any_of(bytes + sizeof(T), bytes + size, [](unsigned char byte) { return byte != 0; })) {
    throw Error(ErrorCode::invalid_argument, concat(type, " sets fields that this library does not know; it is older "
                                                          "than the precast.h of the caller"));
  }
  std::memcpy(&value, from, std::min(size, sizeof(T)));
  value.struct_size = sizeof(T);
}

/// Writes defaults into a caller's struct of `size` bytes, zeros behind what this library knows.
template <typename T>
void write_struct(const T& defaults, T* to, std::size_t size) noexcept {
  std::memset(static_cast<void*>(to), 0, size);
  std::memcpy(static_cast<void*>(to), &defaults, std::min(size, sizeof(T)));
  if (size >= sizeof(std::size_t)) std::memcpy(static_cast<void*>(to), &size, sizeof(std::size_t));
}

}  // namespace precast
