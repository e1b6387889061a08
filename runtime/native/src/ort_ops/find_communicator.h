#pragma once

#include <cstddef>

#include "plugins/collectives/cpu/communicator.h"
#include "runtime/native/src/ort_ops/kernel_state.h"
#include "runtime/native/src/ort_ops/node_info.h"

namespace precast {

/// The communicator of a node that meets other ranks. Throws Error(unsupported_engine) where the session has none.
Communicator& find_communicator(const NodeInfo& node, const KernelState& state);

/// The same for a node whose attribute num_ranks must be the number of its stage's ranks.
Communicator& find_stage_communicator(const NodeInfo& node, const KernelState& state);

}  // namespace precast
