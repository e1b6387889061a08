// SPDX-License-Identifier: Apache-2.0
#include "plugins/paged_attention/cpu/paged_attention.h"

#include <algorithm>
#include <atomic>
#include <utility>

#include "plugins/paged_attention/cpu/attend_split.h"
#include "plugins/paged_attention/cpu/attention_plan.h"
#include "plugins/paged_attention/cpu/kv_tile.h"
#include "plugins/paged_attention/cpu/merge_splits.h"
#include "plugins/paged_attention/cpu/write_tile.h"

namespace precast {
namespace {

// Less work than this is done sooner than other threads have started on it.
constexpr std::size_t elements_per_write_task = 16 * 1024;
constexpr std::size_t min_work_for_threads = std::size_t{1} << 20;  // AttentionPlan::total_cost x head_dim

// The K tiles of one split that a block's rows see: tiles[first] .. tiles[end - 1].
struct SplitTiles {
  const std::byte* tiles[tiles_per_split];
  std::size_t first = 0;
  std::size_t end = 0;
};

// Rows of a block.
struct RowRange {
  std::size_t first;
  std::size_t end;
};

// What one worker needs besides the arguments, for one block at a time.
struct Workspace {
  SplitTiles tiles;
  SplitTiles next_tiles;
  std::size_t* first_visible;  // [max_rows]
  std::size_t* end_visible;    // [max_rows]
  float* scores;               // [max_rows, 512]
  SplitResult total;           // of max_rows rows: the splits so far
  SplitResult split;           // of max_rows rows: the one after them
};

SplitResult take_result(std::size_t max_rows, std::size_t head_dim, Scratch& scratch) {
  return {.max = scratch.take<float>(max_rows),
          .sum = scratch.take<float>(max_rows),
          .weighted = scratch.take<float>(max_rows * head_dim)};
}

Workspace take_workspace(std::size_t max_rows, std::size_t head_dim, Scratch& scratch) {
  return {.tiles = {},
          .next_tiles = {},
          .first_visible = scratch.take<std::size_t>(max_rows),
          .end_visible = scratch.take<std::size_t>(max_rows),
          .scores = scratch.take<float>(max_rows * tokens_per_split),
          .total = take_result(max_rows, head_dim, scratch),
          .split = take_result(max_rows, head_dim, scratch)};
}

// Phase 2 of one call. Its tasks may run at the same time, each with a workspace of its own.
class Attention {
 public:
  Attention(const PagedAttentionArgs& args, AttendSplit attend_split, const std::byte* q) noexcept
      : args_(args), shape_(args.shape), attend_split_(attend_split), q_(q) {}

  // Attends to the splits of a task, and finishes the rows unless other tasks have splits of the same block.
  // `next` is the task that this worker will do next, or null.
  void run(const AttendTask& task, const AttendTask* next, Workspace& workspace) const noexcept {
    const QueryBlock& block = *task.block;
    find_tiles(block, task.first_split, workspace.tiles);
    for (std::size_t split = task.first_split; split < task.end_split; ++split) {
      workspace.next_tiles.first = workspace.next_tiles.end = 0;
      if (split + 1 < task.end_split) {
        find_tiles(block, split + 1, workspace.next_tiles);
      } else if (next != nullptr) {
        find_tiles(*next->block, next->first_split, workspace.next_tiles);
      }
      if (block.partials != nullptr) {
        attend(block, split, workspace, partial_result(block, shape_, split));
      } else if (split == block.first_split) {
        attend(block, split, workspace, workspace.total);
      } else {
        attend(block, split, workspace, workspace.split);
        merge_rows(block, split, workspace.total, workspace.split);
      }
      std::swap(workspace.tiles, workspace.next_tiles);
    }
    if (block.partials == nullptr) finish_rows(block, workspace.total);
  }

  // Merges what the tasks of a divided block left.
  void merge_partials(const QueryBlock& block) const noexcept {
    const SplitResult total = partial_result(block, shape_, block.first_split);
    for (std::size_t i = 1; i < block.num_splits; ++i) {
      const std::size_t split = block.first_split + i;
      merge_rows(block, split, total, partial_result(block, shape_, split));
    }
    finish_rows(block, total);
  }

 private:
  std::size_t num_rows(const QueryBlock& block) const noexcept { return block.num_tokens * shape_.queries_per_kv(); }

  // The rows that see anything of the split. Those of tokens before the split do not, nor do those whose window starts
  // behind it.
  RowRange rows_of(const QueryBlock& block, std::size_t split) const noexcept {
    const std::size_t start = split * tokens_per_split;
    const std::size_t first_token = start <= block.position ? 0 : start - block.position;
    std::size_t end_token = block.num_tokens;
    if (shape_.window > 0) {
      const std::size_t behind = start + tokens_per_split + shape_.window - 1;  // the first position that sees nothing
      end_token = std::min(end_token, behind - block.position);
    }
    return {first_token * shape_.queries_per_kv(), end_token * shape_.queries_per_kv()};
  }

  // The tiles that a block's rows see of a split. Entries of the block table for others are not looked at.
  void find_tiles(const QueryBlock& block, std::size_t split, SplitTiles& found) const noexcept {
    const std::size_t tiles_per_block = shape_.tokens_per_block / tokens_per_tile;
    const std::size_t start = split * tokens_per_split;
    found.first = (std::max(start, block.first_visible) - start) / tokens_per_tile;
    found.end = (std::min(tokens_per_split, block.end_visible() - start) + tokens_per_tile - 1) / tokens_per_tile;
    const std::size_t first = start + found.first * tokens_per_tile;
    const std::int32_t* entry =
        args_.block_tables + block.sequence * args_.block_table_width + first / shape_.tokens_per_block;
    std::size_t tile = first % shape_.tokens_per_block / tokens_per_tile;
    for (std::size_t t = found.first; t < found.end; ++t) {
      found.tiles[t] = find_tile(args_, *entry, block.kv_head, tile);
      if (++tile == tiles_per_block) {
        tile = 0;
        ++entry;
      }
    }
  }

  // Row r's result goes to index r - rows_of(block, split).first.
  void attend(const QueryBlock& block, std::size_t split, Workspace& workspace,
              const SplitResult& result) const noexcept {
    const std::size_t group = shape_.queries_per_kv();
    const std::size_t split_start = split * tokens_per_split;
    const RowRange rows = rows_of(block, split);
    for (std::size_t r = rows.first; r < rows.end; ++r) {
      const std::size_t position = block.position + r / group;
      workspace.first_visible[r - rows.first] = std::max(split_start, shape_.first_visible(position)) - split_start;
      workspace.end_visible[r - rows.first] = std::min(tokens_per_split, position + 1 - split_start);
    }
    const std::size_t q_row = (block.kv_head * args_.num_tokens + block.first_token) * group + rows.first;
    attend_split_({.head_dim = shape_.head_dim,
                   .scale = shape_.scale,
                   .num_rows = rows.end - rows.first,
                   .q = q_ + q_row * shape_.head_dim * shape_.element_bytes(),
                   .first_visible = workspace.first_visible,
                   .end_visible = workspace.end_visible,
                   .tiles = workspace.tiles.tiles,
                   .next_tiles = workspace.next_tiles.tiles,
                   .first_next_tile = workspace.next_tiles.first,
                   .end_next_tile = workspace.next_tiles.end,
                   .scores = workspace.scores,
                   .result = result});
  }

  RowResult row_of(const SplitResult& result, std::size_t row) const noexcept {
    return {result.max[row], result.sum[row], result.weighted + row * shape_.head_dim};
  }

  void merge_rows(const QueryBlock& block, std::size_t split, const SplitResult& total,
                  const SplitResult& result) const noexcept {
    const RowRange rows = rows_of(block, split);
    for (std::size_t r = rows.first; r < rows.end; ++r) {
      const RowResult row = row_of(result, r - rows.first);
      const std::size_t position = block.position + r / shape_.queries_per_kv();
      if (shape_.first_visible(position) / tokens_per_split == split) {  // the first split that this row sees
        start(row_of(total, r), row, shape_.head_dim);
      } else {
        merge(row_of(total, r), row, shape_.head_dim);
      }
    }
  }

  void finish_rows(const QueryBlock& block, const SplitResult& total) const noexcept {
    const std::size_t group = shape_.queries_per_kv();
    for (std::size_t r = 0; r < num_rows(block); ++r) {
      const std::size_t token = block.first_token + r / group;
      const std::size_t head = block.kv_head * group + r % group;
      finish(row_of(total, r), args_.output + (token * shape_.num_heads + head) * shape_.head_dim, shape_.head_dim);
    }
  }

  const PagedAttentionArgs& args_;
  const PagedAttentionShape& shape_;
  AttendSplit attend_split_;
  const std::byte* q_;
};

// Phase 1. Small steps are not worth another thread's start.
class Writing {
 public:
  Writing(KernelLevel level, const PagedAttentionArgs& args, Scratch& scratch)
      : args_(args),
        norm_(rms_norm_row_kernel(level)),
        tiles_(list_tile_rows(args, scratch)),
        queries_(take_rotated_queries(args, scratch)),
        num_tasks_(std::clamp<std::size_t>(args.num_tokens * args.shape.qkv_features() / elements_per_write_task, 1,
                                           tiles_.count)),
        head_bytes_(args.shape.head_dim * args.shape.element_bytes()),
        heads_(scratch.take<std::byte>(num_tasks_ * head_bytes_)),
        normed_(scratch.take<float>(num_tasks_ * args.shape.head_dim)) {}

  const std::byte* q() const noexcept { return queries_.q; }

  void run(const ParallelFor& parallel_for) const {
    parallel_for(num_tasks_, [&](std::size_t task) {
      const std::size_t end = (task + 1) * tiles_.count / num_tasks_;
      const HeadMemory memory{.normed = normed_ + task * args_.shape.head_dim, .rotated = heads_ + task * head_bytes_};
      for (std::size_t i = task * tiles_.count / num_tasks_; i < end; ++i) {
        write_tile(args_, norm_, tiles_.items[i], queries_, memory);
      }
    });
  }

 private:
  const PagedAttentionArgs& args_;
  RmsNormRowKernel norm_;
  TileRowsList tiles_;
  RotatedQueries queries_;
  std::size_t num_tasks_;
  std::size_t head_bytes_;
  std::byte* heads_;  // one for each task
  float* normed_;     // likewise
};

// Runs body(i, next, workspace) for i = 0 .. n - 1: one task per worker, so that each owns a workspace, and a worker
// takes numbers from a counter, one ahead. `next` is what it will run after i; n if there is none.
template <typename Body>
void run_on_workers(Workspace* workspaces, std::size_t num_workers, std::size_t n, const ParallelFor& parallel_for,
                    const Body& body) {
  std::atomic<std::size_t> counter{0};
  parallel_for(std::min(num_workers, n), [&](std::size_t worker) {
    std::size_t next = counter++;
    while (next < n) {
      const std::size_t i = next;
      next = std::min(n, counter++);
      body(i, next, workspaces[worker]);
    }
  });
}

}  // namespace

void paged_attention(KernelLevel level, const PagedAttentionArgs& args, const ParallelFor& parallel_for,
                     Scratch& scratch) {
  scratch.reset();
  const Writing writing(level, args, scratch);
  const AttentionPlan plan = plan_attention(args, parallel_for.threads(), scratch);
  const bool is_small = plan.total_cost * args.shape.head_dim < min_work_for_threads;
  const std::size_t num_workers = is_small ? 1 : std::min(plan.num_tasks, parallel_for.threads());
  auto* const workspaces = scratch.take<Workspace>(num_workers);
  for (std::size_t w = 0; w < num_workers; ++w) {
    workspaces[w] = take_workspace(plan.max_rows, args.shape.head_dim, scratch);
  }

  writing.run(parallel_for);
  const Attention attention(args, attend_split_kernel(level, args.shape.kv_layout), writing.q());
  const auto attend = [&](std::size_t i, std::size_t next, Workspace& workspace) {
    attention.run(plan.tasks[i], next < plan.num_tasks ? &plan.tasks[next] : nullptr, workspace);
  };
  run_on_workers(workspaces, num_workers, plan.num_tasks, parallel_for, attend);
  if (!plan.has_partials) return;
  const auto merge_partials = [&](std::size_t i, std::size_t, Workspace&) {
    if (plan.blocks[i].partials != nullptr) attention.merge_partials(plan.blocks[i]);
  };
  run_on_workers(workspaces, num_workers, plan.num_blocks, parallel_for, merge_partials);
}

}  // namespace precast
