#include "runtime/native/src/ort_ops/find_communicator.h"
#include "runtime/native/src/ort_ops/ort_op.h"

namespace precast {
namespace {

constexpr Argument inputs[] = {{"x", ort::ElementType::float32}};
constexpr Argument outputs[] = {{"rows", ort::ElementType::int32}};

class SendKernel final : public OpKernel {
 public:
  SendKernel(const NodeInfo& node, const KernelState& state) : communicator_(find_communicator(node, state)) {}

  void compute(NodeCall& call) override {
    const TensorView x = call.input(0, {any, any});
    communicator_.send({x.data<float>(), x.extent(0) * x.extent(1)});
    *call.output(0, {1}).data<std::int32_t>() = static_cast<std::int32_t>(x.extent(0));
  }

 private:
  Communicator& communicator_;
};

}  // namespace

const OpDescription send_op = {"Send", inputs, outputs,
                               [](const NodeInfo& node, KernelState& state) -> std::unique_ptr<OpKernel> {
                                 return std::make_unique<SendKernel>(node, state);
                               }};

}  // namespace precast
