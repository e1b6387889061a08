#include "plugins/paged_attention/cpu/paged_attention.h"

#include <mutex>
#include <optional>
#include <string>

#include "runtime/native/src/ort_ops/ort_op.h"

namespace precast {
namespace {

constexpr Argument inputs[] = {{"qkv", ort::ElementType::float32},
                               {"query_starts", ort::ElementType::int32},
                               {"context_lengths", ort::ElementType::int32},
                               {"block_tables", ort::ElementType::int32},
                               {"kv", ort::ElementType::uint8},
                               {"inv_freq", ort::ElementType::float32, true},
                               {"q_norm", ort::ElementType::float32, true},
                               {"k_norm", ort::ElementType::float32, true},
                               {"sinks", ort::ElementType::float32, true}};
constexpr Argument outputs[] = {{"output", ort::ElementType::float32}};
constexpr std::size_t kv_input = 4;
constexpr std::size_t sinks_input = 8;
constexpr std::int64_t max_extent = 1 << 16;  // of heads, head_dim and tokens_per_block: no product of them overflows

KvLayout read_kv_layout(const NodeInfo& node) {
  const std::string text = node.text("kv_layout");
  const std::optional<KvLayout> layout = parse_kv_layout(text);
  if (!layout) node.refuse("kv_layout is ", quote(text), "; version 1 knows kv16.f32/1 and kv16.bf16/1");
  return *layout;
}

/// The attributes; rotary_dim is that of each call's inv_freq.
PagedAttentionShape read_shape(const NodeInfo& node) {
  const PagedAttentionShape shape{.num_heads = node.positive_integer("num_heads", max_extent),
                                  .num_kv_heads = node.positive_integer("num_kv_heads", max_extent),
                                  .head_dim = node.positive_integer("head_dim", max_extent),
                                  .rotary_dim = 0,
                                  .tokens_per_block = node.positive_integer("tokens_per_block", max_extent),
                                  .kv_layout = read_kv_layout(node),
                                  .scale = node.finite_number("scale"),
                                  .rope_scaling = node.finite_number("rope_scaling"),
                                  .rope_start = node.integer("rope_start", 0, INT32_MAX),
                                  .qk_norm_epsilon = node.finite_number("qk_norm_epsilon"),
                                  .window = node.integer("window", 0, INT32_MAX)};
  const std::string problem = find_error(shape);
  if (!problem.empty()) node.refuse(problem);
  return shape;
}

/// Refuses what the op has and the CPU kernels have not: it is never left out in silence.
void refuse_unimplemented(const NodeInfo& node) {
  const float softcap = node.finite_number("logit_softcap");
  if (softcap != 0.0f) {
    node.refuse("logit_softcap is ", softcap, "; the CPU kernels do not have soft-capping of logits yet");
  }
  if (node.has_input(sinks_input)) {
    node.refuse("its input sinks is ", quote(node.input_name(sinks_input)),
                "; the CPU kernels do not have attention sinks yet");
  }
}

/// Where the pool of this node must lie; null where nobody said.
const PoolMemory::Pool* find_pool(const NodeInfo& node, const PagedAttentionShape& shape, const PoolMemory* pools) {
  if (pools == nullptr) return nullptr;
  const std::string name = node.input_name(kv_input);
  const PoolMemory::Pool* const pool = pools->find(name);
  if (pool == nullptr) node.refuse("the manifest lists no KV cache ", quote(name));
  if (static_cast<std::size_t>(pool->block_bytes) != shape.block_bytes()) {
    node.refuse("a block has ", shape.block_bytes(), " bytes, and ", pool->block_bytes, " in the manifest");
  }
  return pool;
}

class PagedAttentionKernel final : public OpKernel {
 public:
  PagedAttentionKernel(const NodeInfo& node, KernelState& state)
      : state_(state), shape_(read_shape(node)), pool_(find_pool(node, shape_, state.pools)) {
    refuse_unimplemented(node);
  }

  void compute(NodeCall& call) override {
    PagedAttentionArgs args = read_inputs(call);
    call.refuse_if(find_error(args.shape));
    call.refuse_if(find_error(args));
    args.output = call.output(0, {args.num_tokens, shape_.num_heads * shape_.head_dim}).data<float>();
    const std::lock_guard lock(state_.mutex);
    paged_attention(state_.level, args, call.parallel_for(), state_.scratch);
  }

 private:
  PagedAttentionArgs read_inputs(const NodeCall& call) const {
    const TensorView qkv = call.input(0, {any, static_cast<std::int64_t>(shape_.qkv_features())});
    const TensorView context_lengths = call.input(2, {any});
    const auto num_sequences = static_cast<std::int64_t>(context_lengths.extent(0));
    const TensorView query_starts = call.input(1, {num_sequences + 1});
    const TensorView block_tables = call.input(3, {num_sequences, any});
    const TensorView kv = call.input(kv_input, {any, static_cast<std::int64_t>(shape_.block_bytes())});
    const TensorView inv_freq = call.input(5, {any, any});
    const TensorView q_norm = call.input(6, {static_cast<std::int64_t>(shape_.head_dim)});
    const TensorView k_norm = call.input(7, {static_cast<std::int64_t>(shape_.head_dim)});
    require_own_pool(call, kv);
    PagedAttentionArgs args;
    args.shape = shape_;
    args.shape.rotary_dim = inv_freq.exists() ? 2 * inv_freq.extent(1) : 0;
    args.num_rope_rows = inv_freq.exists() ? inv_freq.extent(0) : 0;
    args.num_tokens = qkv.extent(0);
    args.num_sequences = context_lengths.extent(0);
    args.block_table_width = block_tables.extent(1);
    args.num_blocks = kv.extent(0);
    args.qkv = qkv.data<float>();
    args.query_starts = query_starts.data<std::int32_t>();
    args.context_lengths = context_lengths.data<std::int32_t>();
    args.block_tables = block_tables.data<std::int32_t>();
    args.inv_freq = inv_freq.data<float>();
    args.q_norm = q_norm.data<float>();
    args.k_norm = k_norm.data<float>();
    args.kv = kv.data<std::byte>();
    return args;
  }

  /// A pool is written in place, which ONNX does not know: were ONNX Runtime ever to pass a copy, the step's keys and
  /// values would be lost without a trace.
  void require_own_pool(const NodeCall& call, const TensorView& kv) const {
    if (pool_ == nullptr || kv.data<std::byte>() == pool_->data) return;
    call.refuse_if(concat("ONNX Runtime passed a copy of the KV cache ", quote(pool_->name)));
  }

  KernelState& state_;
  const PagedAttentionShape shape_;
  const PoolMemory::Pool* const pool_;
};

}  // namespace

const OpDescription paged_attention_op = {
    "PagedAttention", inputs, outputs,
    [](const NodeInfo& node, KernelState& state) -> std::unique_ptr<OpKernel> {
      return std::make_unique<PagedAttentionKernel>(node, state);
    }};

}  // namespace precast
