#include "runtime/native/src/ort_ops/find_communicator.h"
#include "runtime/native/src/ort_ops/ort_op.h"

namespace precast {
namespace {

constexpr Argument inputs[] = {{"x", ort::ElementType::float32}};
constexpr Argument outputs[] = {{"y", ort::ElementType::float32}};

class AllReduceKernel final : public OpKernel {
 public:
  AllReduceKernel(const NodeInfo& node, const KernelState& state) : communicator_(find_stage_communicator(node, state)) {}

  void compute(NodeCall& call) override {
    const TensorView x = call.input(0, {any, any});
    const std::size_t count = x.extent(0) * x.extent(1);
    const TensorView y = call.output(0, {x.extent(0), x.extent(1)});
    communicator_.all_reduce({x.data<float>(), count}, {y.data<float>(), count}, call.parallel_for());
  }

 private:
  Communicator& communicator_;
};

}  // namespace

const OpDescription all_reduce_op = {
    "AllReduce", inputs, outputs,
    [](const NodeInfo& node, KernelState& state) -> std::unique_ptr<OpKernel> {
      return std::make_unique<AllReduceKernel>(node, state);
    }};

}  // namespace precast
