#include "runtime/native/src/model.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "runtime/native/src/concat.h"
#include "runtime/native/src/kv_plan.h"

namespace precast {

Model::Model(std::unique_ptr<Session> session, EngineLimits limits, std::size_t max_num_tokens,
             std::size_t tokens_per_block, std::vector<std::int64_t> windows)
    : limits_(std::move(limits)),
      max_num_tokens_(max_num_tokens),
      tokens_per_block_(tokens_per_block),
      windows_(std::move(windows)),
      session_(std::move(session)) {}

std::vector<BlockTable> Model::block_tables(std::size_t start, std::size_t end) const {
  std::vector<BlockTable> tables;
  std::size_t first_block_id = 0;  // each group has a range of ids, and takes them in turn
  for (const std::int64_t window : windows_) {
    const std::size_t num_blocks = blocks_of_sequence(static_cast<std::uint64_t>(limits_.max_seq_len), window,
                                                      max_num_tokens_, tokens_per_block_);
    const auto window_size = static_cast<std::size_t>(window);
    const std::size_t first_visible = window == 0 || start < window_size ? 0 : start - window_size + 1;
    BlockTable table;
    table.blocks.assign((end + tokens_per_block_ - 1) / tokens_per_block_, -1);
    table.width = static_cast<std::int32_t>(table.blocks.size());
    for (std::size_t b = first_visible / tokens_per_block_; b < table.blocks.size(); ++b) {
      table.blocks[b] = static_cast<std::int32_t>(first_block_id + b % num_blocks);
    }
    tables.push_back(std::move(table));
    first_block_id += num_blocks;
  }
  return tables;
}

void Model::compute_logits(std::span<const std::int32_t> token_ids, std::span<float> logits) {
  const auto vocab_size = static_cast<std::size_t>(limits_.vocab_size);
  const auto refuse = [](const auto&... parts) { throw Error(ErrorCode::invalid_argument, concat(parts...)); };
  if (token_ids.empty() || token_ids.size() > static_cast<std::size_t>(limits_.max_seq_len)) {
    refuse("a sequence of ", token_ids.size(), " tokens; it must have 1 to max_seq_len ", limits_.max_seq_len);
  }
  if (logits.size() != token_ids.size() * vocab_size) {
    refuse("room for ", logits.size(), " logits; ", token_ids.size(), " tokens have ", token_ids.size() * vocab_size);
  }
  for (std::size_t i = 0; i < token_ids.size(); ++i) {
    if (token_ids[i] < 0 || token_ids[i] >= limits_.vocab_size) {
      refuse("token_ids[", i, "] is ", token_ids[i], ", outside the vocabulary of ", limits_.vocab_size);
    }
  }

  for (std::size_t start = 0; start < token_ids.size(); start += max_num_tokens_) {
    const auto chunk = token_ids.subspan(start, std::min(max_num_tokens_, token_ids.size() - start));
    const std::size_t end = start + chunk.size();
    StepBatch batch;
    batch.id = ++last_step_;
    batch.token_ids.assign(chunk.begin(), chunk.end());
    batch.query_starts = {0, static_cast<std::int32_t>(chunk.size())};
    batch.context_lengths = {static_cast<std::int32_t>(end)};
    batch.block_tables = block_tables(start, end);
    batch.logit_rows.resize(chunk.size());
    std::iota(batch.logit_rows.begin(), batch.logit_rows.end(), 0);
    batch.needs_logits.assign(chunk.size(), 1);
    batch.num_candidates.assign(chunk.size(), 0);
    session_->enqueue(batch);
    const StepResult result = session_->collect(batch.id);
    std::copy(result.logits.begin(), result.logits.end(), logits.begin() + static_cast<std::ptrdiff_t>(start * vocab_size));
  }
}

}  // namespace precast
