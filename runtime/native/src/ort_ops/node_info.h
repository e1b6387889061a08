#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "runtime/native/src/concat.h"
#include "runtime/native/src/error.h"
#include "runtime/native/src/ort_abi.h"

namespace precast {

/// The graph node that a kernel is created for: its name and attributes. Valid during the creation only.
/// Attributes that are missing, of another type or out of range throw Error(unsupported_engine), which names the node.
class NodeInfo {
 public:
  NodeInfo(const ort::Api& api, const ort::KernelInfo& info, const char* op_name);

  /// e.g. `node "layers.3.attention" (ai.precast.PagedAttention)`, for messages.
  const std::string& description() const noexcept { return description_; }

  /// Whether the node has an input `index`, which may be beyond its last.
  bool has_input(std::size_t index) const;

  /// The name of the value that the node reads as input `index`.
  std::string input_name(std::size_t index) const;

  /// In [1, maximum]. The default bound keeps a product of two from overflowing.
  std::size_t positive_integer(const char* attribute, std::int64_t maximum = INT32_MAX) const {
    return integer(attribute, 1, maximum);
  }
  /// In [minimum, maximum], where 0 <= minimum.
  std::size_t integer(const char* attribute, std::int64_t minimum, std::int64_t maximum) const;
  float finite_number(const char* attribute) const;
  std::string text(const char* attribute) const;

  template <typename... Parts>
  [[noreturn]] void refuse(const Parts&... parts) const {
    throw Error(ErrorCode::unsupported_engine, concat(description_, ": ", parts...));
  }

 private:
  const ort::Api& api_;
  const ort::KernelInfo& info_;
  std::string description_;
};

}  // namespace precast
