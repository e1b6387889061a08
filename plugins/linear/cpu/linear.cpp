// SPDX-License-Identifier: Apache-2.0
#include "plugins/linear/cpu/linear.h"

#include <algorithm>

#include "plugins/linear/cpu/linear_kernels.h"

namespace precast {
namespace {

// A task of less work than this (weight lines times rows) takes about as long as handing it to another thread.
constexpr std::size_t smallest_task = 32 * 1024;
// With fewer rows than this, reading the weights takes longer than multiplying them.
constexpr std::size_t rows_per_read = 8;
// More tasks than threads, so that a thread that is late does not hold up the others for long.
constexpr std::size_t tasks_per_thread = 4;
// The weights that all panels of a task are multiplied with before the next ones: they stay in the second-level cache.
constexpr std::size_t block_bytes = 192 * 1024;
// Rows whose sums and inputs go through the cache meanwhile.
constexpr std::size_t rows_per_task = 256;

constexpr std::size_t divide_up(std::size_t a, std::size_t b) noexcept { return (a + b - 1) / b; }

struct Range {
  std::size_t begin;
  std::size_t end;

  std::size_t size() const noexcept { return end - begin; }
};

// Part `index` of 0 .. total - 1, cut into `parts` ranges whose sizes differ by one at most.
Range part(std::size_t total, std::size_t parts, std::size_t index) noexcept {
  return {total * index / parts, total * (index + 1) / parts};
}

// How one call is cut up. Rows make panels, tiles make groups that a kernel takes at once, lines (of inputs) make
// blocks. A task is a range of panels times a range of groups, and goes through all the blocks in ascending order:
// nothing here can change a bit of the result.
struct Plan {
  std::size_t num_rows;
  std::size_t num_tiles;
  std::size_t num_lines;
  std::size_t units_per_row;  // of a panel

  std::size_t num_panels;
  std::size_t tiles_per_group;
  std::size_t num_groups;
  std::size_t num_blocks;

  std::size_t row_parts;
  std::size_t column_parts;

  std::size_t num_tasks() const noexcept { return row_parts * column_parts; }
  Range panel_rows(std::size_t panel) const noexcept { return part(num_rows, num_panels, panel); }
};

Plan make_plan(const LinearArgs& args, const LinearKernels& kernels, std::size_t threads) noexcept {
  Plan plan{};
  plan.num_rows = args.num_rows;
  plan.num_tiles = num_tiles(args.shape.out_features);
  plan.num_lines = lines_per_tile(args.shape.layout, args.shape.in_features);
  plan.units_per_row = plan.num_lines * kernels.units_per_line;
  plan.num_panels = args.num_rows <= kernels.most_rows ? 1 : divide_up(args.num_rows, kernels.panel_rows);
  plan.tiles_per_group = kernels.tiles_at_once(divide_up(args.num_rows, plan.num_panels));
  plan.num_groups = divide_up(plan.num_tiles, plan.tiles_per_group);
  // A single panel uses weights once: they need not stay anywhere.
  const std::size_t group_bytes = plan.tiles_per_group * plan.num_lines * line_bytes;
  plan.num_blocks = plan.num_panels == 1 ? 1 : divide_up(group_bytes, block_bytes);

  const std::size_t work = std::max(plan.num_rows, rows_per_read) * plan.num_tiles * plan.num_lines;
  const std::size_t wanted = std::clamp<std::size_t>(work / smallest_task, 1, threads * tasks_per_thread);
  plan.column_parts = std::min(wanted, plan.num_groups);
  const std::size_t row_parts = std::max(divide_up(wanted, plan.column_parts), divide_up(args.num_rows, rows_per_task));
  plan.row_parts = std::min(row_parts, plan.num_panels);
  return plan;
}

// The rows of a panel, converted and side by side: [lines][units_per_line][rows].
void make_panel(const LinearArgs& args, const LinearKernels& kernels, Range rows, LinearUnit* panel) noexcept {
  for (std::size_t r = 0; r < rows.size(); ++r) {
    const float* const x = args.x + (rows.begin + r) * args.shape.in_features;
    kernels.convert_row(x, args.shape.in_features, panel + r, rows.size());
  }
}

// One panel times one group, over one block of lines.
void multiply(const LinearArgs& args, const LinearKernels& kernels, const Plan& plan, const LinearUnit* panels,
              Range lines, std::size_t group, Range rows) noexcept {
  const std::size_t tile_bytes = plan.num_lines * line_bytes;
  const std::size_t first_tile = group * plan.tiles_per_group;
  const std::size_t tiles = std::min(plan.tiles_per_group, plan.num_tiles - first_tile);
  const std::size_t column = first_tile * tile_outputs;
  const std::size_t out_features = args.shape.out_features;
  float* const y = args.y + rows.begin * out_features + column;
  const bool first = lines.begin == 0;
  const float* const bias = args.bias == nullptr ? nullptr : args.bias + column;
  kernels.multiply[rows.size() - 1][tiles - 1]({
      .x = panels + rows.begin * plan.units_per_row + lines.begin * kernels.units_per_line * rows.size(),
      .weight = args.weight + first_tile * tile_bytes + lines.begin * line_bytes,
      .tile_bytes = tile_bytes,
      .num_lines = lines.size(),
      .num_columns = std::min(tiles * tile_outputs, out_features - column),
      .start = first ? bias : y,
      .start_stride = first ? 0 : out_features,
      .y = y,
      .y_stride = out_features,
  });
}

void run_task(const LinearArgs& args, const LinearKernels& kernels, const Plan& plan, const LinearUnit* panels,
              std::size_t task) noexcept {
  const Range groups = part(plan.num_groups, plan.column_parts, task % plan.column_parts);
  const Range its_panels = part(plan.num_panels, plan.row_parts, task / plan.column_parts);
  for (std::size_t block = 0; block < plan.num_blocks; ++block) {
    const Range lines = part(plan.num_lines, plan.num_blocks, block);
    for (std::size_t group = groups.begin; group < groups.end; ++group) {
      for (std::size_t panel = its_panels.begin; panel < its_panels.end; ++panel) {
        multiply(args, kernels, plan, panels, lines, group, plan.panel_rows(panel));
      }
    }
  }
}

const LinearKernels& linear_kernels([[maybe_unused]] KernelLevel level, WeightLayout layout) noexcept {
#ifdef PRECAST_X86
  if (level == KernelLevel::avx512) return linear_kernels_avx512(layout);
  if (level == KernelLevel::avx2) return linear_kernels_avx2(layout);
#endif
  return linear_kernels_portable(layout);
}

}  // namespace

std::string find_error(const LinearArgs& args) {
  const auto& [in_features, out_features, layout] = args.shape;
  const std::optional<std::size_t> size_bytes = packed_size_bytes(layout, out_features, in_features);
  if (size_bytes == args.weight_size_bytes) return {};
  const std::string matrix = "Linear: a weight of out_features " + std::to_string(out_features) + " and in_features " +
                             std::to_string(in_features) + " in layout " + std::string(id(layout));
  if (!size_bytes) return matrix + " is no matrix";
  return matrix + " has " + std::to_string(*size_bytes) + " bytes, not " + std::to_string(args.weight_size_bytes);
}

void linear(KernelLevel level, const LinearArgs& args, const ParallelFor& parallel_for, Scratch& scratch) {
  if (args.num_rows == 0) return;
  const LinearKernels& kernels = linear_kernels(level, args.shape.layout);
  const Plan plan = make_plan(args, kernels, parallel_for.threads());
  scratch.reset();
  auto* const panels = scratch.take<LinearUnit>(plan.num_rows * plan.units_per_row);
  const std::size_t conversions = plan.num_tasks() == 1 ? 1 : plan.num_panels;
  const auto convert = [&](std::size_t index) {
    const Range its_panels = part(plan.num_panels, conversions, index);
    for (std::size_t panel = its_panels.begin; panel < its_panels.end; ++panel) {
      const Range rows = plan.panel_rows(panel);
      make_panel(args, kernels, rows, panels + rows.begin * plan.units_per_row);
    }
  };
  parallel_for(conversions, convert);
  parallel_for(plan.num_tasks(), [&](std::size_t task) { run_task(args, kernels, plan, panels, task); });
}

}  // namespace precast
