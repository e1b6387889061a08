#include "plugins/embedding/cpu/embedding.h"

#include "runtime/native/src/ort_ops/ort_op.h"
#include "runtime/native/src/ort_ops/read_weight_layout.h"

namespace precast {
namespace {

constexpr Argument inputs[] = {{"token_ids", ort::ElementType::int32}, {"table", ort::ElementType::uint8}};
constexpr Argument outputs[] = {{"y", ort::ElementType::float32}};

class EmbeddingKernel final : public OpKernel {
 public:
  EmbeddingKernel(const NodeInfo& node, const KernelState& state)
      : level_(state.level),
        shape_{.rows = node.positive_integer("rows"),
               .features = node.positive_integer("features"),
               .layout = read_weight_layout(node),
               .row_start = node.integer("row_start", 0, INT32_MAX),
               .is_slice = node.integer("is_slice", 0, 1) == 1} {}

  void compute(NodeCall& call) override {
    const TensorView token_ids = call.input(0, {any});
    const TensorView table = call.input(1, {any});
    EmbeddingArgs args{.shape = shape_,
                       .num_tokens = token_ids.extent(0),
                       .token_ids = token_ids.data<std::int32_t>(),
                       .table = table.data<std::byte>(),
                       .table_size_bytes = table.extent(0)};
    call.refuse_if(find_error(args));
    args.y = call.output(0, {args.num_tokens, shape_.features}).data<float>();
    embedding(level_, args, call.parallel_for());
  }

 private:
  const KernelLevel level_;
  const EmbeddingShape shape_;
};

}  // namespace

const OpDescription embedding_op = {
    "Embedding", inputs, outputs,
    [](const NodeInfo& node, KernelState& state) -> std::unique_ptr<OpKernel> {
      return std::make_unique<EmbeddingKernel>(node, state);
    }};

}  // namespace precast
