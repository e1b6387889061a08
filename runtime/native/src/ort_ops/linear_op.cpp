#include "plugins/linear/cpu/linear.h"

#include <mutex>

#include "runtime/native/src/ort_ops/ort_op.h"
#include "runtime/native/src/ort_ops/read_weight_layout.h"

namespace precast {
namespace {

constexpr Argument inputs[] = {{"x", ort::ElementType::float32},
                               {"weight", ort::ElementType::uint8},
                               {"bias", ort::ElementType::float32, true}};
constexpr Argument outputs[] = {{"y", ort::ElementType::float32}};

class LinearKernel final : public OpKernel {
 public:
  LinearKernel(const NodeInfo& node, KernelState& state)
      : state_(state),
        shape_{.in_features = node.positive_integer("in_features"),
               .out_features = node.positive_integer("out_features"),
               .layout = read_weight_layout(node)} {}

  void compute(NodeCall& call) override {
    const TensorView x = call.input(0, {any, static_cast<std::int64_t>(shape_.in_features)});
    const TensorView weight = call.input(1, {any});
    const TensorView bias = call.input(2, {static_cast<std::int64_t>(shape_.out_features)});
    LinearArgs args{.shape = shape_,
                    .num_rows = x.extent(0),
                    .x = x.data<float>(),
                    .weight = weight.data<std::byte>(),
                    .weight_size_bytes = weight.extent(0),
                    .bias = bias.data<float>()};
    call.refuse_if(find_error(args));
    args.y = call.output(0, {args.num_rows, shape_.out_features}).data<float>();
    const std::lock_guard lock(state_.mutex);
    linear(state_.level, args, call.parallel_for(), state_.scratch);
  }

 private:
  KernelState& state_;
  const LinearShape shape_;
};

}  // namespace

const OpDescription linear_op = {
    "Linear", inputs, outputs,
    [](const NodeInfo& node, KernelState& state) -> std::unique_ptr<OpKernel> {
      return std::make_unique<LinearKernel>(node, state);
    }};

}  // namespace precast
