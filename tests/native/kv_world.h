// A KV cache and sequences with it, without a scheduler: what is asked of it is asked by hand.
#pragma once

#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

#include "runtime/native/src/kv_cache.h"
#include "tests/native/check.h"

namespace precast::test {

struct KvWorld {
  using Ids = std::vector<std::int32_t>;

  explicit KvWorld(const KvCacheConfig& config) : cache(config) {}

  struct Sequence {
    Ids token_ids;
    KvSequence kv;
    std::size_t num_computed = 0;
  };

  Sequence open(Ids token_ids, std::string_view salt = {}, std::vector<RetentionRange> retention = {},
                bool skip_reuse = false) {
    return {std::move(token_ids), cache.open(salt, std::move(retention), skip_reuse)};
  }

  /// Takes what is there; returns the number of blocks found.
  std::size_t reuse(Sequence& sequence) {
    const KvCache::Hit hit = cache.find(sequence.kv, sequence.token_ids, sequence.num_computed);
    cache.take(sequence.kv, hit);
    sequence.num_computed += hit.num_blocks * cache.tokens_per_block();
    return hit.num_blocks;
  }

  /// Computes its first `num_tokens` tokens, as far as they are not. False: no room.
  bool compute(Sequence& sequence, std::size_t num_tokens) {
    cache.leave_window(sequence.kv, sequence.num_computed);
    if (!cache.grow(sequence.kv, num_tokens)) return false;
    sequence.num_computed = num_tokens;
    cache.store(sequence.kv, sequence.token_ids, num_tokens, num_tokens, 0);
    return true;
  }

  bool compute(Sequence& sequence) { return compute(sequence, sequence.token_ids.size()); }

  void end(Sequence& sequence) {
    cache.retire(sequence.kv, 0);
    sequence.num_computed = 0;
  }

  /// A sequence from beginning to end.
  void run(Ids token_ids, std::string_view salt = {}, std::vector<RetentionRange> retention = {}) {
    Sequence sequence = open(std::move(token_ids), salt, std::move(retention));
    reuse(sequence);
    CHECK(compute(sequence));
    end(sequence);
  }

  /// How many blocks a new sequence finds.
  std::size_t num_found(Ids token_ids, std::string_view salt = {}) {
    Sequence sequence = open(std::move(token_ids), salt);
    return cache.find(sequence.kv, sequence.token_ids, 0).num_blocks;
  }

  void check(const std::vector<const Sequence*>& sequences = {}) const {
    std::vector<const KvSequence*> kv;
    for (const Sequence* sequence : sequences) kv.push_back(&sequence->kv);
    cache.check_integrity(kv);
  }

  KvCache cache;
};

}  // namespace precast::test
