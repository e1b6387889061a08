#include "runtime/native/src/ranks/local/local_leader.h"

#include <bit>

namespace precast {
namespace {

LocalRanks::Settings settings_of(const EngineManifest& manifest, const RankOptions& options, std::uint32_t num_threads) {
  const std::size_t world_size = manifest.ranks.size();
  const auto num_stages = static_cast<std::size_t>(manifest.mapping.pipeline_parallel_size);
  return {.rank_memory = {.tensor_parallel_size = world_size / num_stages, .pipeline_parallel_size = num_stages},
          .steps = {.world_size = world_size,
                    .num_slots = std::bit_ceil(num_stages),
                    .carries_logits = num_stages > 1,
                    .limits = options.limits},
          .first_rank = 1,
          .wait = {.rank_timeout = options.rank_timeout, .spins = spins_of(world_size, num_threads)},
          .program = {.path = find_worker(options.worker_path)},
          .worker = {.engine_dir = manifest.directory.string(),
                     .onnxruntime_path = options.rank.onnxruntime_path,
                     .kernel_level = options.rank.kernel_level,
                     .num_threads = num_threads,
                     .num_blocks = options.rank.num_blocks},
          .log = options.log};
}

}  // namespace

LocalLeader::LocalLeader(const EngineManifest& manifest, const RankOptions& options, std::uint32_t num_threads)
    : logits_rank_(manifest.ranks.size() - static_cast<std::size_t>(manifest.mapping.tensor_parallel_size)),
      ranks_(settings_of(manifest, options, num_threads)) {}

std::span<const float> LocalLeader::wait_for_logits(std::uint32_t number, std::size_t count) {
  ranks_.wait_for(logits_rank_, number);
  return {ranks_.steps().result(number).logits, count};
}

}  // namespace precast
