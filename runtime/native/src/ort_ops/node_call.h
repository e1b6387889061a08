#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>

#include "plugins/cpu/kernel.h"
#include "runtime/native/src/ort_abi.h"

namespace precast {

/// One input or output of an op. ONNX Runtime has checked its element type when it loaded the graph.
struct Argument {
  const char* name;
  ort::ElementType type;
  bool is_optional = false;
};

/// An extent that may be anything.
inline constexpr std::int64_t any = -1;

/// A dense tensor of ONNX Runtime, valid during one call.
class TensorView {
 public:
  static constexpr std::size_t max_rank = 4;

  TensorView() noexcept = default;
  TensorView(void* data, std::span<const std::int64_t> shape) noexcept;

  bool exists() const noexcept { return exists_; }  ///< false: an optional argument that is absent
  std::size_t extent(std::size_t axis) const noexcept { return static_cast<std::size_t>(shape_[axis]); }

  template <typename T>
  T* data() const noexcept {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
  std::array<std::int64_t, max_rank> shape_{};
  bool exists_ = false;
};

/// One execution of a node.
class NodeCall {
 public:
  NodeCall(const ort::Api& api, ort::KernelContext& context, const std::string& node, std::span<const Argument> inputs,
           std::size_t num_threads) noexcept
      : api_(api), context_(context), node_(node), inputs_(inputs), num_threads_(num_threads) {}

  /// Input `index`, whose shape must be `shape`, in which `any` stands for every extent. Throws Error(internal) that
  /// names node, input and both shapes.
  TensorView input(std::size_t index, std::initializer_list<std::int64_t> shape) const;

  /// Output `index`, allocated with this shape; it does not exist where the graph does not use it.
  TensorView output(std::size_t index, std::initializer_list<std::size_t> shape) const;

  /// Throws Error(internal) that names the node unless `problem`, what a kernel's find_error said, is "".
  void refuse_if(const std::string& problem) const;

  /// ONNX Runtime's own pool of threads. Refers to this object.
  ParallelFor parallel_for() noexcept { return {&run, this, num_threads_}; }

 private:
  static void run(void* self, std::size_t n, ParallelFor::Task task, void* context);

  const ort::Api& api_;
  ort::KernelContext& context_;
  const std::string& node_;
  std::span<const Argument> inputs_;
  std::size_t num_threads_;
};

}  // namespace precast
