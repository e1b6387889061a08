#include "runtime/native/src/ort_tensor.h"

namespace precast {

ort::ElementType to_element_type(TensorType type) noexcept {
  switch (type) {
    case TensorType::float32: return ort::ElementType::float32;
    case TensorType::float16: return ort::ElementType::float16;
    case TensorType::bfloat16: return ort::ElementType::bfloat16;
    case TensorType::int8: return ort::ElementType::int8;
    case TensorType::uint8: return ort::ElementType::uint8;
    case TensorType::int32: return ort::ElementType::int32;
    case TensorType::int64: return ort::ElementType::int64;
  }
  __builtin_unreachable();
}

TensorMaker::TensorMaker(const ort::Api& api)
    : api_(api),
      memory_info_(ort::make<ort::MemoryInfo>(api, api.ReleaseMemoryInfo, "describe memory", [&](auto** out) {
        return api.CreateCpuMemoryInfo(ort::AllocatorType::arena, ort::MemType::default_memory, out);
      })) {}

ort::Handle<ort::Value> TensorMaker::make(ort::ElementType type, const void* data, std::size_t size_bytes,
                                          std::span<const std::int64_t> shape) const {
  static const std::byte nothing[64] = {};
  // An empty vector may have no address, and a tensor must have one.
  const void* const address = data != nullptr ? data : nothing;
  return ort::make<ort::Value>(api_, api_.ReleaseValue, "make a tensor", [&](auto** out) {
    return api_.CreateTensorWithDataAsOrtValue(memory_info_.get(), const_cast<void*>(address), size_bytes, shape.data(),
                                               shape.size(), type, out);
  });
}

}  // namespace precast
