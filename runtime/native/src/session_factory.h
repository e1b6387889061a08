#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "runtime/native/src/session.h"

namespace precast {

/// What a session that is not built in is told; precast_session_config_t.
struct SessionConfig {
  std::string engine_path;
  std::uint64_t kv_cache_bytes = 0;
  std::uint32_t max_batch_size = 0;
  std::uint32_t max_num_tokens = 0;
  std::uint32_t max_seq_len = 0;
  std::uint32_t tokens_per_block = 0;
  std::uint32_t num_kv_groups = 0;
  std::uint32_t vocab_size = 0;
  std::uint32_t rank = 0;
  std::uint32_t world_size = 1;
  bool gives_results = true;  ///< whether anybody reads the results of its steps: of several ranks, one's are read
  /// Shows the other ranks `mine` and writes what all show, rank after rank, into `all`, of world_size times the size. Empty
  /// where there is one rank.
  std::function<void(std::span<const std::byte> mine, std::span<std::byte> all)> exchange{};
};

struct MadeSession {
  std::unique_ptr<Session> session;
  std::uint32_t num_blocks = 0;  ///< of its KV memory, over all groups
  std::string device{};          ///< what computes, for people; may be ""
};

using SessionFactory = std::function<MadeSession(const SessionConfig&)>;

}  // namespace precast
