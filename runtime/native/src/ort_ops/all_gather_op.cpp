#include "runtime/native/src/concat.h"
#include "runtime/native/src/ort_ops/find_communicator.h"
#include "runtime/native/src/ort_ops/ort_op.h"

namespace precast {
namespace {

constexpr Argument inputs[] = {{"x", ort::ElementType::float32}};
constexpr Argument outputs[] = {{"y", ort::ElementType::float32}};

class AllGatherKernel final : public OpKernel {
 public:
  AllGatherKernel(const NodeInfo& node, const KernelState& state)
      : communicator_(find_stage_communicator(node, state)),
        num_features_(node.positive_integer("num_features")),
        root_(node.integer("root", 0, static_cast<std::int64_t>(communicator_.num_tensor_ranks()) - 1)) {}

  void compute(NodeCall& call) override {
    const TensorView x = call.input(0, {any, any});
    const std::size_t num_rows = x.extent(0);
    if (x.extent(1) * communicator_.num_tensor_ranks() < num_features_) {
      call.refuse_if(concat("the ranks have ", x.extent(1), " columns each, too few for num_features ", num_features_));
    }
    const std::size_t num_output_rows = communicator_.tensor_rank() == root_ ? num_rows : 0;
    const TensorView y = call.output(0, {num_output_rows, num_features_});
    communicator_.all_gather({x.data<float>(), num_rows * x.extent(1)}, num_rows, root_,
                             {y.data<float>(), num_output_rows * num_features_}, num_features_, call.parallel_for());
  }

 private:
  Communicator& communicator_;
  const std::size_t num_features_;
  const std::size_t root_;
};

}  // namespace

const OpDescription all_gather_op = {
    "AllGather", inputs, outputs,
    [](const NodeInfo& node, KernelState& state) -> std::unique_ptr<OpKernel> {
      return std::make_unique<AllGatherKernel>(node, state);
    }};

}  // namespace precast
