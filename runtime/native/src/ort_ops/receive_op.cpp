#include "runtime/native/src/ort_ops/find_communicator.h"
#include "runtime/native/src/ort_ops/ort_op.h"

namespace precast {
namespace {

constexpr Argument inputs[] = {{"token_ids", ort::ElementType::int32}};
constexpr Argument outputs[] = {{"y", ort::ElementType::float32}};

class ReceiveKernel final : public OpKernel {
 public:
  ReceiveKernel(const NodeInfo& node, const KernelState& state)
      : communicator_(find_communicator(node, state)), num_features_(node.positive_integer("num_features")) {}

  void compute(NodeCall& call) override {
    const std::size_t num_tokens = call.input(0, {any}).extent(0);
    const TensorView y = call.output(0, {num_tokens, num_features_});
    communicator_.receive({y.data<float>(), num_tokens * num_features_});
  }

 private:
  Communicator& communicator_;
  const std::size_t num_features_;
};

}  // namespace

const OpDescription receive_op = {
    "Receive", inputs, outputs,
    [](const NodeInfo& node, KernelState& state) -> std::unique_ptr<OpKernel> {
      return std::make_unique<ReceiveKernel>(node, state);
    }};

}  // namespace precast
