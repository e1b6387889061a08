#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

#include "runtime/native/src/ort_handle.h"
#include "runtime/native/src/weights_index.h"

namespace precast {

/// ONNX Runtime's name for an element type.
ort::ElementType to_element_type(TensorType type) noexcept;

/// Tensors over memory of ours: nothing is copied, and the memory must outlive them. Throws Error(onnxruntime), also where
/// the memory is smaller than the shape needs.
class TensorMaker {
 public:
  explicit TensorMaker(const ort::Api& api);

  ort::Handle<ort::Value> make(ort::ElementType type, const void* data, std::size_t size_bytes,
                               std::span<const std::int64_t> shape) const;

 private:
  const ort::Api& api_;
  ort::Handle<ort::MemoryInfo> memory_info_;
};

}  // namespace precast
