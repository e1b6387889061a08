// SPDX-License-Identifier: Apache-2.0
#include "plugins/paged_attention/cpu/attention_plan.h"

#include <algorithm>

#include "plugins/paged_attention/cpu/kv_tile.h"

namespace precast {
namespace {

// Enough rows to make reading K and V cheap beside computing; few enough for their scores to stay in the second-level
// cache (32 rows x 512 scores: 64 KiB).
constexpr std::size_t rows_per_block = 32;
// Reading a token's K and V costs about as much as computing this many rows with them.
constexpr std::size_t read_cost_in_rows = 8;
// A task is at most about 1 / (this x threads) of all work, so that threads finish together.
constexpr std::size_t tasks_per_thread = 2;
// Dividing the context of a block needs memory for each split's result. Blocks beyond this are not divided.
constexpr std::size_t max_partial_floats = std::size_t{16} << 20;

std::size_t ceil_div(std::size_t a, std::size_t b) noexcept { return (a + b - 1) / b; }

std::size_t tokens_per_query_block(const PagedAttentionShape& shape) noexcept {
  return std::max<std::size_t>(1, rows_per_block / shape.queries_per_kv());
}

std::size_t num_rows(const QueryBlock& block, const PagedAttentionShape& shape) noexcept {
  return block.num_tokens * shape.queries_per_kv();
}

std::size_t floats_per_split(const QueryBlock& block, const PagedAttentionShape& shape) noexcept {
  return num_rows(block, shape) * (shape.head_dim + 2);
}

// In tokens x rows.
std::size_t cost_of(const QueryBlock& block, const PagedAttentionShape& shape) noexcept {
  return (block.end_visible() - block.first_visible) * (num_rows(block, shape) + read_cost_in_rows);
}

// Calls f(QueryBlock) for all blocks of the step.
template <typename F>
void for_each_block(const PagedAttentionArgs& args, const F& f) {
  const std::size_t step = tokens_per_query_block(args.shape);
  for (std::size_t s = 0; s < args.num_sequences; ++s) {
    const auto begin = static_cast<std::size_t>(args.query_starts[s]);
    const auto end = static_cast<std::size_t>(args.query_starts[s + 1]);
    for (std::size_t head = 0; head < args.shape.num_kv_heads; ++head) {
      for (std::size_t token = begin; token < end; token += step) {
        QueryBlock block{.sequence = s,
                         .kv_head = head,
                         .first_token = token,
                         .num_tokens = std::min(step, end - token),
                         .position = first_position(args, s) + token - begin,
                         .first_visible = 0,
                         .first_split = 0,
                         .num_splits = 0,
                         .partials = nullptr};
        block.first_visible = args.shape.first_visible(block.position);
        block.first_split = block.first_visible / tokens_per_split;
        block.num_splits = ceil_div(block.end_visible(), tokens_per_split) - block.first_split;
        f(block);
      }
    }
  }
}

// Decides for each block whether, and among how many tasks, its splits are divided.
class Divider {
 public:
  Divider(const PagedAttentionShape& shape, std::size_t total_cost, std::size_t threads) noexcept
      : shape_(shape), target_cost_(threads == 1 ? total_cost : ceil_div(total_cost, threads * tasks_per_thread)) {}

  std::size_t num_tasks(const QueryBlock& block) noexcept {
    const std::size_t wanted = std::min(block.num_splits, ceil_div(cost_of(block, shape_), target_cost_));
    const std::size_t floats = block.num_splits * floats_per_split(block, shape_);
    if (wanted == 1 || floats > floats_left_) return 1;
    floats_left_ -= floats;
    return wanted;
  }

 private:
  const PagedAttentionShape& shape_;
  std::size_t target_cost_;
  std::size_t floats_left_ = max_partial_floats;
};

}  // namespace

AttentionPlan plan_attention(const PagedAttentionArgs& args, std::size_t threads, Scratch& scratch) {
  const PagedAttentionShape& shape = args.shape;
  AttentionPlan plan{};
  std::size_t max_tasks = 0;
  for_each_block(args, [&](const QueryBlock& block) {
    ++plan.num_blocks;
    max_tasks += block.num_splits;
    plan.total_cost += cost_of(block, shape);
    plan.max_rows = std::max(plan.max_rows, num_rows(block, shape));
  });
  // Each divided task but a block's last costs at least the target: few more tasks than blocks.
  max_tasks = std::min(max_tasks, plan.num_blocks + (threads + 1) * tasks_per_thread);
  auto* const blocks = scratch.take<QueryBlock>(plan.num_blocks);
  auto* const tasks = scratch.take<AttendTask>(max_tasks);
  plan.blocks = blocks;
  plan.tasks = tasks;
  Divider divider(shape, plan.total_cost, threads);
  QueryBlock* next_block = blocks;
  for_each_block(args, [&](const QueryBlock& planned) {
    QueryBlock& block = *next_block++ = planned;
    const std::size_t num_tasks = divider.num_tasks(block);
    if (num_tasks > 1) {
      block.partials = scratch.take<float>(block.num_splits * floats_per_split(block, shape));
      plan.has_partials = true;
    }
    for (std::size_t t = 0; t < num_tasks; ++t) {
      tasks[plan.num_tasks++] = {.block = &block,
                                 .first_split = block.first_split + t * block.num_splits / num_tasks,
                                 .end_split = block.first_split + (t + 1) * block.num_splits / num_tasks,
                                 .cost = cost_of(block, shape) / num_tasks};
    }
  });
  std::sort(tasks, tasks + plan.num_tasks,
            [](const AttendTask& a, const AttendTask& b) { return a.cost > b.cost; });
  return plan;
}

SplitResult partial_result(const QueryBlock& block, const PagedAttentionShape& shape, std::size_t split) noexcept {
  const std::size_t rows = num_rows(block, shape);
  float* const first = block.partials + (split - block.first_split) * floats_per_split(block, shape);
  return {.max = first, .sum = first + rows, .weighted = first + 2 * rows};
}

}  // namespace precast
