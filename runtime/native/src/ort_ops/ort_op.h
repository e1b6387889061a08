#pragma once

#include <deque>
#include <memory>
#include <span>

#include "runtime/native/src/ort_handle.h"
#include "runtime/native/src/ort_ops/kernel_state.h"
#include "runtime/native/src/ort_ops/node_call.h"
#include "runtime/native/src/ort_ops/node_info.h"

namespace precast {

/// A node's kernel: it has read and checked the attributes, and computes whenever ONNX Runtime comes to the node.
class OpKernel {
 public:
  virtual ~OpKernel() = default;

  /// Throws Error for inputs of the wrong shape, and std::bad_alloc; the step then fails and nothing else.
  virtual void compute(NodeCall& call) = 0;
};

/// An op as ONNX Runtime is told of it. The meaning is in plugins/<op>/schema.py.
struct OpDescription {
  const char* name;
  std::span<const Argument> inputs;
  std::span<const Argument> outputs;
  std::unique_ptr<OpKernel> (*create)(const NodeInfo& node, KernelState& state);  ///< throws Error
};

extern const OpDescription all_gather_op;
extern const OpDescription all_reduce_op;
extern const OpDescription embedding_op;
extern const OpDescription gated_activation_op;
extern const OpDescription linear_op;
extern const OpDescription paged_attention_op;
extern const OpDescription receive_op;
extern const OpDescription rms_norm_op;
extern const OpDescription send_op;

/// The domain ai.precast, version 1, for one or more sessions. Outlives them.
class OrtOps {
 public:
  /// `state` must outlive this object. Throws Error(onnxruntime).
  OrtOps(const ort::Api& api, KernelState& state);
  OrtOps(const OrtOps&) = delete;
  OrtOps& operator=(const OrtOps&) = delete;

  /// Makes the ops known to sessions that are created with `options`. Throws Error(onnxruntime).
  void add_to(ort::SessionOptions& options) const;

 private:
  struct Op : ort::CustomOp {
    Op(const OpDescription& op_description, KernelState& kernel_state);

    const OpDescription& description;
    KernelState& state;
  };
  struct Kernel;

  static const Op& self(const ort::CustomOp* op) { return *static_cast<const Op*>(op); }
  static ort::Status* create_kernel(const ort::CustomOp* op, const ort::Api* api, const ort::KernelInfo* info,
                                    void** kernel) noexcept;
  static ort::Status* compute(void* kernel, ort::KernelContext* context) noexcept;
  static void destroy_kernel(void* kernel) noexcept;

  const ort::Api& api_;
  std::deque<Op> ops_;  // at fixed addresses: ONNX Runtime keeps pointers
  ort::Handle<ort::CustomOpDomain> domain_;
};

}  // namespace precast
