#include "runtime/native/src/ort_ops/ort_op.h"

#include <exception>
#include <string>
#include <utility>

namespace precast {
namespace {

constexpr const char* domain_name = "ai.precast";

/// Runs `body` and turns what it throws into a status: exceptions never cross into ONNX Runtime.
template <typename Body>
ort::Status* guarded(const ort::Api& api, Body&& body) noexcept {
  try {
    std::forward<Body>(body)();
    return nullptr;
  } catch (const std::bad_alloc&) {
    return api.CreateStatus(ort::ErrorCode::fail, "there is no memory left for this step");
  } catch (const std::exception& error) {
    return api.CreateStatus(ort::ErrorCode::fail, error.what());
  }
}

ort::ArgumentCharacteristic characteristic(const Argument& argument) {
  return argument.is_optional ? ort::ArgumentCharacteristic::optional : ort::ArgumentCharacteristic::required;
}

}  // namespace

struct OrtOps::Kernel {
  const ort::Api& api;
  const Op& op;
  std::string node;
  std::unique_ptr<OpKernel> kernel;
};

OrtOps::Op::Op(const OpDescription& op_description, KernelState& kernel_state)
    : ort::CustomOp{}, description(op_description), state(kernel_state) {
  version = ort::api_version;
  GetName = [](const ort::CustomOp* op) { return self(op).description.name; };
  GetExecutionProviderType = [](const ort::CustomOp*) -> const char* { return nullptr; };  // the CPU's
  GetInputTypeCount = [](const ort::CustomOp* op) { return self(op).description.inputs.size(); };
  GetInputType = [](const ort::CustomOp* op, std::size_t index) { return self(op).description.inputs[index].type; };
  GetInputCharacteristic = [](const ort::CustomOp* op, std::size_t index) {
    return characteristic(self(op).description.inputs[index]);
  };
  GetInputMemoryType = [](const ort::CustomOp*, std::size_t) { return ort::MemType::default_memory; };
  GetOutputTypeCount = [](const ort::CustomOp* op) { return self(op).description.outputs.size(); };
  GetOutputType = [](const ort::CustomOp* op, std::size_t index) { return self(op).description.outputs[index].type; };
  GetOutputCharacteristic = [](const ort::CustomOp* op, std::size_t index) {
    return characteristic(self(op).description.outputs[index]);
  };
  GetVariadicInputMinArity = GetVariadicOutputMinArity = [](const ort::CustomOp*) { return 1; };
  GetVariadicInputHomogeneity = GetVariadicOutputHomogeneity = [](const ort::CustomOp*) { return 1; };
  GetStartVersion = GetEndVersion = [](const ort::CustomOp*) { return 1; };
  CreateKernelV2 = &OrtOps::create_kernel;
  KernelComputeV2 = &OrtOps::compute;
  KernelDestroy = &OrtOps::destroy_kernel;
}

ort::Status* OrtOps::create_kernel(const ort::CustomOp* op, const ort::Api* api, const ort::KernelInfo* info,
                                   void** kernel) noexcept {
  return guarded(*api, [&] {
    const OpDescription& description = self(op).description;
    const NodeInfo node(*api, *info, description.name);
    *kernel = new Kernel{*api, self(op), node.description(), description.create(node, self(op).state)};
  });
}

ort::Status* OrtOps::compute(void* kernel, ort::KernelContext* context) noexcept {
  const Kernel& self = *static_cast<Kernel*>(kernel);
  return guarded(self.api, [&] {
    if (self.op.state.communicator != nullptr) self.op.state.communicator->heartbeat();
    NodeCall call(self.api, *context, self.node, self.op.description.inputs, self.op.state.num_threads);
    self.kernel->compute(call);
  });
}

void OrtOps::destroy_kernel(void* kernel) noexcept { delete static_cast<Kernel*>(kernel); }

OrtOps::OrtOps(const ort::Api& api, KernelState& state)
    : api_(api),
      domain_(ort::make<ort::CustomOpDomain>(api, api.ReleaseCustomOpDomain, "create the domain ai.precast",
                                             [&](auto** out) { return api.CreateCustomOpDomain(domain_name, out); })) {
  for (const OpDescription* description :
       {&all_gather_op, &all_reduce_op, &embedding_op, &gated_activation_op, &linear_op, &paged_attention_op,
        &receive_op, &rms_norm_op, &send_op}) {
    const Op& op = ops_.emplace_back(*description, state);
    ort::check(api, api.CustomOpDomain_Add(domain_.get(), &op), "add an op to the domain ai.precast");
  }
}

void OrtOps::add_to(ort::SessionOptions& options) const {
  ort::check(api_, api_.AddCustomOpDomain(&options, domain_.get()), "add the domain ai.precast to a session");
}

}  // namespace precast
