#include "runtime/native/src/ort_ops/find_communicator.h"

namespace precast {

Communicator& find_communicator(const NodeInfo& node, const KernelState& state) {
  if (state.communicator == nullptr) node.refuse("it meets other ranks, and this session runs alone");
  return *state.communicator;
}

Communicator& find_stage_communicator(const NodeInfo& node, const KernelState& state) {
  Communicator& communicator = find_communicator(node, state);
  const std::size_t num_ranks = node.positive_integer("num_ranks");
  if (num_ranks != communicator.num_tensor_ranks()) {
    node.refuse("num_ranks is ", num_ranks, ", and the engine runs with ", communicator.num_tensor_ranks(),
                " tensor-parallel ranks");
  }
  return communicator;
}

}  // namespace precast
