#include "runtime/native/src/ranks/messages/message_leader.h"

#include <span>
#include <stdexcept>
#include <utility>

#include "runtime/native/src/concat.h"
#include "runtime/native/src/error.h"
#include "runtime/native/src/ranks/messages/logit_pieces.h"
#include "runtime/native/src/ranks/messages/orders.h"

namespace precast {
namespace {

LoadReply read_reply(const std::vector<std::byte>& message, std::size_t rank) {
  try {
    return LoadReply::from_message(message);
  } catch (const std::invalid_argument& error) {
    throw Error(ErrorCode::rank_failed, concat("rank ", rank, ": ", error.what()));
  }
}

}  // namespace

MessageLeader::MessageLeader(MessagePassing& messages, const EngineManifest& manifest, const RankOptions& options,
                             std::uint32_t session, unsigned spins)
    : logits_rank_(manifest.ranks.size() - static_cast<std::size_t>(manifest.mapping.tensor_parallel_size)),
      log_(options.log ? std::make_unique<LogQueue>(options.log) : nullptr),
      session_(session),
      slots_(static_cast<std::size_t>(manifest.mapping.pipeline_parallel_size) + 1),
      step_bytes_(order_bytes + max_step_bytes(options.limits)) {
  ranks_.emplace(messages, session, WaitOptions{.rank_timeout = options.rank_timeout, .spins = spins});
  communicator_.emplace(*ranks_, static_cast<std::size_t>(manifest.mapping.tensor_parallel_size));
  ranks_->on_log = [this](std::size_t from, std::uint32_t level, const std::string& text) {
    if (log_ != nullptr) log_->add(static_cast<LogLevel>(level), concat("rank ", from, ": ", text));
  };
  const std::string directory = manifest.directory.string();
  const LoadOrder order{.session = session,
                        .build_id = build_id(directory),
                        .tensor_parallel_size = static_cast<std::size_t>(manifest.mapping.tensor_parallel_size),
                        .engine_dir = directory,
                        .onnxruntime_path = options.rank.onnxruntime_path,
                        .kernel_level = options.rank.kernel_level,
                        .num_threads = options.rank.num_threads,
                        .num_blocks = options.rank.num_blocks,
                        .rank_timeout = options.rank_timeout};
  try {
    for (std::size_t rank = 1; rank < messages.num_ranks(); ++rank) ranks_->post(rank, message_tag::order, order.to_message());
  } catch (const MessageError& error) {
    throw Error(ErrorCode::rank_failed, concat("cannot tell the ranks of ", directory, " what to load: ", error.what()));
  }
}

MessageLeader::~MessageLeader() {
  stop();
  for (Slot& slot : slots_) ranks_->give_back(slot.transfers, slot.bytes);
  ranks_->give_back(logits_transfers_, logits_);
  communicator_.reset();
  const std::string failure = ranks_->failure();
  ranks_.reset();
  if (on_end) on_end(failure);
}

void MessageLeader::stop() noexcept {
  if (std::exchange(has_stopped_, true)) return;
  for (std::size_t rank = 1; rank < ranks_->messages().num_ranks(); ++rank) {
    try {
      ranks_->post(rank, message_tag::order, to_message(Order::stop));
    } catch (const MessageError&) {
      // A rank that cannot be told anything computes no steps either.
    }
  }
}

void MessageLeader::wait_until_ready() {
  for (std::size_t rank = 1; rank < ranks_->messages().num_ranks(); ++rank) wait_until_ready(rank);
}

void MessageLeader::wait_until_ready(std::size_t rank) {
  while (true) {
    std::size_t num_bytes = 0;
    ranks_->wait_until(rank, "to load", [&] {
      const auto envelope = ranks_->messages().probe(message_tag::reply, rank);
      if (envelope) num_bytes = envelope->num_bytes;
      return envelope.has_value();
    });
    std::vector<std::byte> message(num_bytes);
    std::vector<MessageTransfer> transfers{{ranks_->start_receive(rank, message_tag::reply, message), rank}};
    try {
      ranks_->wait_for(transfers[0].request, rank, "to load");
    } catch (...) {
      ranks_->give_back(transfers, message);
      throw;
    }
    const LoadReply reply = read_reply(message, rank);
    if (reply.session != session_ && reply.session != LoadReply::any_session) continue;
    if (reply.error_code == 0) return;
    throw Error(static_cast<ErrorCode>(reply.error_code), concat("rank ", rank, ": ", reply.error));
  }
}

void MessageLeader::publish(std::uint32_t number, const StepBatch& batch) {
  Slot& slot = slots_[number % slots_.size()];
  for (auto& [request, other] : slot.transfers) {
    if (request != nullptr) ranks_->wait_for(request, other, "to take a step");
  }
  slot.transfers.clear();
  slot.bytes = to_message(Order::step);
  slot.bytes.resize(step_bytes_);
  const std::size_t used = order_bytes + encode_step(batch, std::span(slot.bytes).subspan(order_bytes));
  for (std::size_t rank = 1; rank < ranks_->messages().num_ranks(); ++rank) {
    slot.transfers.push_back({ranks_->start_send(rank, message_tag::order, std::span(slot.bytes).first(used)), rank});
  }
}

std::span<const float> MessageLeader::wait_for_logits(std::uint32_t number, std::size_t count) {
  if (ranks_->has_failed()) ranks_->throw_failure();  // logits_ may still be written to
  logits_.resize(count);
  for_logit_pieces(count, [&](std::size_t first, std::size_t size) {
    const std::span<float> piece = std::span(logits_).subspan(first, size);
    logits_transfers_ = {{ranks_->start_receive(logits_rank_, message_tag::logits, std::as_writable_bytes(piece)), logits_rank_}};
    const std::size_t received = ranks_->wait_for(logits_transfers_[0].request, logits_rank_, "to compute its part of a step");
    if (received == piece.size_bytes()) return;
    ranks_->fail(concat("rank ", logits_rank_, " has sent ", received, " bytes of logits of step ", number, ", and rank 0 expects ",
                       piece.size_bytes()));
    ranks_->throw_failure();
  });
  return logits_;
}

}  // namespace precast
