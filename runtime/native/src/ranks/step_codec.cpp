#include "runtime/native/src/ranks/step_codec.h"

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <vector>

namespace precast {
namespace {

constexpr std::size_t source_bytes = 2 * sizeof(std::uint64_t);

/// Appends numbers.
class Writer {
 public:
  explicit Writer(std::span<std::byte> to) noexcept : data_(to.data()), left_(to.size()) {}

  void number(std::uint64_t value) { bytes(&value, sizeof value); }
  void vector(const std::vector<std::int32_t>& values) {
    number(values.size());
    bytes(values.data(), values.size() * sizeof(std::int32_t));
    if (values.size() % 2 != 0) bytes("\0\0\0", 4);  // what follows is aligned
  }
  void flags(const std::vector<std::uint8_t>& values) {
    number(values.size());
    bytes(values.data(), values.size());
    bytes("\0\0\0\0\0\0\0", (8 - values.size() % 8) % 8);
  }

  std::size_t num_left() const noexcept { return left_; }

 private:
  void bytes(const void* from, std::size_t count) {
    if (count > left_) throw std::logic_error("a step is larger than what ranks have room for");
    if (count != 0) std::memcpy(data_, from, count);
    data_ += count;
    left_ -= count;
  }

  std::byte* data_;
  std::size_t left_;
};

class Reader {
 public:
  explicit Reader(std::span<const std::byte> from) noexcept : data_(from.data()), left_(from.size()) {}

  std::uint64_t number() {
    std::uint64_t value = 0;
    bytes(&value, sizeof value);
    return value;
  }
  void vector(std::vector<std::int32_t>& values) {
    const std::uint64_t count = number();
    if (count > left_ / sizeof(std::int32_t)) throw std::logic_error("a step of rank 0 is malformed");
    values.resize(count);
    bytes(values.data(), count * sizeof(std::int32_t));
    if (count % 2 != 0) bytes(padding_, 4);
  }
  void flags(std::vector<std::uint8_t>& values) {
    const std::uint64_t count = number();
    if (count > left_) throw std::logic_error("a step of rank 0 is malformed");
    values.resize(count);
    bytes(values.data(), count);
    bytes(padding_, (8 - count % 8) % 8);
  }

 private:
  void bytes(void* to, std::size_t count) {
    if (count > left_) throw std::logic_error("a step of rank 0 is malformed");
    if (count != 0) std::memcpy(to, data_, count);
    data_ += count;
    left_ -= count;
  }

  const std::byte* data_;
  std::size_t left_;
  char padding_[8] = {};
};

}  // namespace

std::size_t max_step_bytes(const StepLimits& limits) noexcept {
  constexpr std::size_t max_counts = 64 * 1024;  // lengths, and the widths of block tables
  const std::size_t numbers =
      limits.max_tokens + 2 * limits.max_sequences + 2 * limits.max_logit_rows + limits.max_table_entries + 1;
  // A sequence has one unknown token in a step, and every row a flag.
  return numbers * sizeof(std::int32_t) + limits.max_sequences * source_bytes + limits.max_logit_rows + max_counts;
}

std::size_t encode_step(const StepBatch& batch, std::span<std::byte> to) {
  Writer writer(to);
  writer.number(batch.id);
  writer.vector(batch.token_ids);
  writer.vector(batch.query_starts);
  writer.vector(batch.context_lengths);
  writer.vector(batch.logit_rows);
  writer.flags(batch.needs_logits);
  writer.vector(batch.num_candidates);
  writer.number(batch.token_sources.size());
  for (const TokenSource& source : batch.token_sources) {
    writer.number(std::uint64_t{static_cast<std::uint32_t>(source.row)} << 32 | static_cast<std::uint32_t>(source.source_row));
    writer.number(source.source_step);
  }
  writer.number(batch.block_tables.size());
  for (const BlockTable& table : batch.block_tables) {
    writer.number(static_cast<std::uint64_t>(table.width));
    writer.vector(table.blocks);
  }
  return to.size() - writer.num_left();
}

void decode_step(std::span<const std::byte> from, StepBatch& batch) {
  Reader reader(from);
  batch.id = reader.number();
  reader.vector(batch.token_ids);
  reader.vector(batch.query_starts);
  reader.vector(batch.context_lengths);
  reader.vector(batch.logit_rows);
  reader.flags(batch.needs_logits);
  reader.vector(batch.num_candidates);
  const std::uint64_t num_sources = reader.number();
  if (num_sources > from.size()) throw std::logic_error("a step of rank 0 is malformed");
  batch.token_sources.resize(num_sources);
  for (TokenSource& source : batch.token_sources) {
    const std::uint64_t rows = reader.number();
    source = {static_cast<std::int32_t>(rows >> 32), static_cast<std::int32_t>(rows), reader.number()};
  }
  const std::uint64_t num_tables = reader.number();
  if (num_tables > from.size()) throw std::logic_error("a step of rank 0 is malformed");
  batch.block_tables.resize(num_tables);
  for (BlockTable& table : batch.block_tables) {
    table.width = static_cast<std::int32_t>(reader.number());
    reader.vector(table.blocks);
  }
}

}  // namespace precast
