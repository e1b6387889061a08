#include "plugins/gated_activation/cpu/gated_activation.h"

#include <optional>
#include <string>

#include "runtime/native/src/ort_ops/ort_op.h"

namespace precast {
namespace {

constexpr Argument inputs[] = {{"gate_up", ort::ElementType::float32}};
constexpr Argument outputs[] = {{"output", ort::ElementType::float32}};

Activation read_activation(const NodeInfo& node) {
  const std::string text = node.text("activation");
  const std::optional<Activation> activation = parse_activation(text);
  if (!activation) node.refuse("activation is ", quote(text), "; version 1 knows silu");
  return *activation;
}

class GatedActivationKernel final : public OpKernel {
 public:
  GatedActivationKernel(const NodeInfo& node, const KernelState& state)
      : level_(state.level), activation_(read_activation(node)) {}

  void compute(NodeCall& call) override {
    const TensorView gate_up = call.input(0, {any, any});
    const std::size_t width = gate_up.extent(1);
    if (width % 2 != 0) call.refuse_if(concat("gate_up has ", width, " columns, which is not even"));
    const TensorView output = call.output(0, {gate_up.extent(0), width / 2});
    gated_activation(level_,
                     {.num_tokens = gate_up.extent(0),
                      .intermediate_size = width / 2,
                      .activation = activation_,
                      .gate_up = gate_up.data<float>(),
                      .output = output.data<float>()},
                     call.parallel_for());
  }

 private:
  KernelLevel level_;
  Activation activation_;
};

}  // namespace

const OpDescription gated_activation_op = {
    "GatedActivation", inputs, outputs,
    [](const NodeInfo& node, KernelState& state) -> std::unique_ptr<OpKernel> {
      return std::make_unique<GatedActivationKernel>(node, state);
    }};

}  // namespace precast
