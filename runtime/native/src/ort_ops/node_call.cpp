#include "runtime/native/src/ort_ops/node_call.h"

#include <algorithm>
#include <vector>

#include "runtime/native/src/concat.h"
#include "runtime/native/src/error.h"
#include "runtime/native/src/ort_handle.h"

#if defined(__SANITIZE_THREAD__)
extern "C" void __tsan_acquire(void* address);
extern "C" void __tsan_release(void* address);
#endif

namespace precast {
namespace {

std::vector<std::int64_t> shape_of(const ort::Api& api, const ort::Value& value) {
  const auto info = ort::make<ort::TensorTypeAndShapeInfo>(
      api, api.ReleaseTensorTypeAndShapeInfo, "describe a tensor",
      [&](auto** out) { return api.GetTensorTypeAndShape(&value, out); });
  std::size_t rank = 0;
  ort::check(api, api.GetDimensionsCount(info.get(), &rank), "describe a tensor");
  std::vector<std::int64_t> shape(rank);
  ort::check(api, api.GetDimensions(info.get(), shape.data(), rank), "describe a tensor");
  return shape;
}

void* data_of(const ort::Api& api, const ort::Value& value) {
  void* data = nullptr;
  // The ABI has no function for reading; inputs are not written through this pointer, but for the KV pool.
  ort::check(api, api.GetTensorMutableData(const_cast<ort::Value*>(&value), &data), "give a tensor's address");
  return data;
}

bool matches(std::span<const std::int64_t> shape, std::span<const std::int64_t> expected) {
  return std::equal(shape.begin(), shape.end(), expected.begin(), expected.end(),
                    [](std::int64_t extent, std::int64_t wanted) { return wanted == any || extent == wanted; });
}

std::string text(std::span<const std::int64_t> shape) {
  std::string result = "[";
  for (const std::int64_t extent : shape) {
    if (result.size() > 1) result += ", ";
    result += extent == any ? "any" : std::to_string(extent);
  }
  return result + "]";
}

/// A task on ONNX Runtime's threads. Those are not compiled with the thread sanitizer, so it is told that what happened
/// before the call is visible to the tasks, and what they did to the caller afterwards.
struct Work {
  ParallelFor::Task task;
  void* context;

  static void run(void* self, std::size_t index) {
    auto& work = *static_cast<Work*>(self);
    work.acquire();
    work.task(work.context, index);
    work.release();
  }

#if defined(__SANITIZE_THREAD__)
  void acquire() { __tsan_acquire(this); }
  void release() { __tsan_release(this); }
#else
  void acquire() noexcept {}
  void release() noexcept {}
#endif
};

}  // namespace

TensorView::TensorView(void* data, std::span<const std::int64_t> shape) noexcept : data_(data), exists_(true) {
  std::copy(shape.begin(), shape.end(), shape_.begin());
}

TensorView NodeCall::input(std::size_t index, std::initializer_list<std::int64_t> shape) const {
  const Argument& argument = inputs_[index];
  const ort::Value* value = nullptr;
  ort::check(api_, api_.KernelContext_GetInput(&context_, index, &value), concat("give ", argument.name, " to ", node_));
  if (value == nullptr) {
    if (argument.is_optional) return {};
    throw Error(ErrorCode::internal, concat(node_, ": input ", argument.name, " is missing"));
  }
  const std::vector<std::int64_t> actual = shape_of(api_, *value);
  if (!matches(actual, shape)) {
    throw Error(ErrorCode::internal, concat(node_, ": input ", argument.name, " has shape ", text(actual), "; expected ",
                                            text(std::span(shape.begin(), shape.size()))));
  }
  return {data_of(api_, *value), actual};
}

TensorView NodeCall::output(std::size_t index, std::initializer_list<std::size_t> extents) const {
  std::array<std::int64_t, TensorView::max_rank> shape{};
  std::copy(extents.begin(), extents.end(), shape.begin());
  ort::Value* value = nullptr;
  ort::check(api_, api_.KernelContext_GetOutput(&context_, index, shape.data(), extents.size(), &value),
             concat("allocate output ", index, " of ", node_));
  if (value == nullptr) return {};
  return {data_of(api_, *value), std::span(shape).first(extents.size())};
}

void NodeCall::refuse_if(const std::string& problem) const {
  if (!problem.empty()) throw Error(ErrorCode::internal, concat(node_, ": ", problem));
}

void NodeCall::run(void* self, std::size_t n, ParallelFor::Task task, void* context) {
  const auto& call = *static_cast<const NodeCall*>(self);
  Work work{task, context};
  work.release();
  // 0 batches: threads take the next task when they are done with one.
  ort::check(call.api_, call.api_.KernelContext_ParallelFor(&call.context_, &Work::run, n, 0, &work),
             concat("run ", call.node_, " in parallel"));
  work.acquire();
}

}  // namespace precast
