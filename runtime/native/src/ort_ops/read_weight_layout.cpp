#include "runtime/native/src/ort_ops/read_weight_layout.h"

#include <optional>
#include <string>

namespace precast {

WeightLayout read_weight_layout(const NodeInfo& node) {
  const std::string text = node.text("layout");
  const std::optional<WeightLayout> layout = parse_weight_layout(text);
  if (!layout) {
    node.refuse("layout is ", quote(text), "; this version knows ", id(WeightLayout::x16k1_f32), " and ",
                id(WeightLayout::x16k2_bf16));
  }
  return *layout;
}

}  // namespace precast
