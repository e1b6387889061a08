#pragma once

#include "plugins/cpu/weight_layout.h"
#include "runtime/native/src/ort_ops/node_info.h"

namespace precast {

/// The attribute `layout` of Linear and Embedding. Throws Error where it is none that this version knows.
WeightLayout read_weight_layout(const NodeInfo& node);

}  // namespace precast
