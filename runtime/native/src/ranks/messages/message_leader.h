#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "plugins/collectives/cpu/message_communicator.h"
#include "plugins/collectives/cpu/message_ranks.h"
#include "runtime/native/src/engine_manifest.h"
#include "runtime/native/src/ranks/log_queue.h"
#include "runtime/native/src/ranks/rank_link.h"
#include "runtime/native/src/ranks/rank_options.h"

namespace precast {

/// Rank 0's connection to ranks that wait for its messages (serve_rank), on this host or others.
class MessageLeader final : public LeaderLink {
 public:
  /// Tells the other ranks what to load. `session` counts the engines of these processes; `messages` outlives this object.
  /// Throws Error.
  MessageLeader(MessagePassing& messages, const EngineManifest& manifest, const RankOptions& options, std::uint32_t session,
                unsigned spins);

  /// Called at the very end, when nothing is sent or received any more, with the reason why the ranks have failed, or "".
  std::function<void(const std::string&)> on_end;

  MessageLeader(const MessageLeader&) = delete;
  MessageLeader& operator=(const MessageLeader&) = delete;
  ~MessageLeader() override;

  Communicator& communicator() noexcept override { return *communicator_; }
  void fail(std::string_view reason) noexcept override { ranks_->fail(reason); }
  bool has_failed() const noexcept override { return ranks_->has_failed(); }
  std::string failure() const override { return ranks_->failure(); }

  void wait_until_ready() override;
  void publish(std::uint32_t number, const StepBatch& batch) override;
  std::span<const float> wait_for_logits(std::uint32_t number, std::size_t count) override;
  void stop() noexcept override;

 private:
  /// An order with a step, on its way to every other rank.
  struct Slot {
    std::vector<std::byte> bytes;
    std::vector<MessageTransfer> transfers;
  };

  void wait_until_ready(std::size_t rank);

  const std::size_t logits_rank_;  ///< tensor rank 0 of the last stage
  std::unique_ptr<LogQueue> log_;  ///< none: nobody reads it
  const std::uint32_t session_;
  std::optional<MessageRanks> ranks_;
  std::optional<MessageCommunicator> communicator_;
  std::vector<Slot> slots_;
  std::vector<float> logits_;
  std::vector<MessageTransfer> logits_transfers_;  ///< none, or the one that is awaited
  const std::size_t step_bytes_;
  bool has_stopped_ = false;
};

}  // namespace precast
