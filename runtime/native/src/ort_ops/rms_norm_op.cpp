#include "plugins/rms_norm/cpu/rms_norm.h"

#include "runtime/native/src/ort_ops/ort_op.h"

namespace precast {
namespace {

constexpr Argument inputs[] = {{"x", ort::ElementType::float32},
                               {"weight", ort::ElementType::float32},
                               {"residual", ort::ElementType::float32, true}};
constexpr Argument outputs[] = {{"y", ort::ElementType::float32}, {"sum", ort::ElementType::float32, true}};

class RmsNormKernel final : public OpKernel {
 public:
  RmsNormKernel(const NodeInfo& node, const KernelState& state)
      : level_(state.level), epsilon_(node.finite_number("epsilon")) {
    if (epsilon_ < 0) node.refuse("epsilon is ", epsilon_, "; it must not be negative");
  }

  void compute(NodeCall& call) override {
    const TensorView weight = call.input(1, {any});
    const auto hidden_size = static_cast<std::int64_t>(weight.extent(0));
    const TensorView x = call.input(0, {any, hidden_size});
    const TensorView residual = call.input(2, {static_cast<std::int64_t>(x.extent(0)), hidden_size});
    const TensorView y = call.output(0, {x.extent(0), weight.extent(0)});
    const TensorView sum = call.output(1, {x.extent(0), weight.extent(0)});
    if (residual.exists() != sum.exists()) call.refuse_if("residual and sum must both be there, or neither");
    rms_norm(level_,
             {.num_tokens = x.extent(0),
              .hidden_size = weight.extent(0),
              .epsilon = epsilon_,
              .x = x.data<float>(),
              .weight = weight.data<float>(),
              .residual = residual.data<float>(),
              .y = y.data<float>(),
              .sum = sum.data<float>()},
             call.parallel_for());
  }

 private:
  KernelLevel level_;
  float epsilon_;
};

}  // namespace

const OpDescription rms_norm_op = {
    "RmsNorm", inputs, outputs,
    [](const NodeInfo& node, KernelState& state) -> std::unique_ptr<OpKernel> {
      return std::make_unique<RmsNormKernel>(node, state);
    }};

}  // namespace precast
