#include "runtime/native/src/c_api/logits_processor.h"

#include <cstdint>
#include <exception>
#include <vector>

#include "runtime/native/src/c_api/error.h"
#include "runtime/native/src/c_api/structs.h"
#include "runtime/native/src/c_api/values.h"

namespace precast {
namespace {

precast_logits_row_t to_row(const SamplingRow& from) {
  precast_logits_row_t row{};
  row.request_id = from.request_id;
  row.sequence = from.sequence;
  row.num_prompt_tokens = static_cast<std::uint32_t>(from.num_prompt_tokens);
  row.token_ids = from.token_ids.data();
  row.num_token_ids = from.token_ids.size();
  return row;
}

class CallerLogitsProcessor final : public LogitsProcessor {
 public:
  explicit CallerLogitsProcessor(const precast_logits_processor_t& table) : table_(table) {}

  void start(std::span<const SamplingRow> rows) noexcept override {
    if (table_.start == nullptr) return;
    try {
      std::vector<precast_logits_row_t> to;
      for (const SamplingRow& row : rows) to.push_back(to_row(row));
      table_.start(table_.user_data, to.data(), sizeof(precast_logits_row_t), to.size());
    } catch (const std::bad_alloc&) {
      return;  // it is only told earlier than it must be: process will be called
    }
  }

  void process(std::span<ProcessorRow> rows) override {
    const std::size_t vocab_size = rows.front().logits.size();
    const std::size_t num_words = (vocab_size + 31) / 32;
    std::vector<std::uint32_t> allowed(rows.size() * num_words, ~std::uint32_t{0});
    std::vector<precast_logits_row_t> to;
    for (std::size_t i = 0; i < rows.size(); ++i) {
      to.push_back(to_row(rows[i].source));
      to.back().logits = rows[i].logits.data();
      to.back().allowed = allowed.data() + i * num_words;
    }
    table_.process(table_.user_data, to.data(), sizeof(precast_logits_row_t), to.size(), vocab_size);
    for (std::size_t i = 0; i < rows.size(); ++i) {
      if (to[i].error != nullptr) rows[i].error = take_error(to[i].error);
      apply_token_bit_mask(std::span(allowed).subspan(i * num_words, num_words), rows[i].logits);
    }
  }

 private:
  const precast_logits_processor_t table_;
};

}  // namespace

std::shared_ptr<LogitsProcessor> make_logits_processor(const precast_logits_processor_t* table) {
  if (table == nullptr) return nullptr;
  precast_logits_processor_t known{};
  read_struct(table, "precast_logits_processor_t", known);
  require(known.process != nullptr, "process of precast_logits_processor_t is NULL");
  return std::make_shared<CallerLogitsProcessor>(known);
}

}  // namespace precast
