#include "runtime/native/src/ranks/messages/message_worker.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>

#include "plugins/collectives/cpu/message_communicator.h"
#include "plugins/collectives/cpu/message_ranks.h"
#include "runtime/native/src/concat.h"
#include "runtime/native/src/error.h"
#include "runtime/native/src/log.h"
#include "runtime/native/src/ranks/messages/logit_pieces.h"
#include "runtime/native/src/ranks/messages/orders.h"
#include "runtime/native/src/ranks/rank_options.h"
#include "runtime/native/src/ranks/step_codec.h"
#include "runtime/native/src/ranks/worker.h"

namespace precast {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::microseconds;
using std::chrono::milliseconds;

/// Between two looks of a rank that has nothing to do: at first nearly none, after a tenth of a second a millisecond, so that
/// an idle engine costs little.
void rest(Clock::duration idle) {
  if (idle < microseconds(500)) {
    std::this_thread::yield();
  } else {
    std::this_thread::sleep_for(idle < milliseconds(100) ? microseconds(50) : microseconds(1000));
  }
}

/// The next order of rank 0; nothing once `is_over` says so.
template <typename IsOver>
std::vector<std::byte> wait_for_order(MessagePassing& messages, IsOver&& is_over) {
  const Clock::time_point start = Clock::now();
  while (true) {
    if (const auto envelope = messages.probe(message_tag::order, 0)) {
      std::vector<std::byte> order(envelope->num_bytes);
      MessagePassing::Request request = messages.start_receive(0, message_tag::order, order);
      while (!messages.test(request)) {
        if (is_over()) {
          messages.abandon(request);
          messages.keep(std::make_shared<std::vector<std::byte>>(std::move(order)));
          return {};
        }
        std::this_thread::yield();
      }
      return order;
    }
    if (is_over()) return {};
    rest(Clock::now() - start);
  }
}

/// A worker's connection to rank 0.
class MessageWorker final : public WorkerLink {
 public:
  MessageWorker(MessagePassing& messages, const LoadOrder& order, unsigned spins)
      : ranks_(messages, order.session, {.rank_timeout = order.rank_timeout, .spins = spins}),
        communicator_(ranks_, order.tensor_parallel_size),
        sends_logits_(order.tensor_parallel_size < messages.num_ranks() &&
                      messages.rank() == messages.num_ranks() - order.tensor_parallel_size) {}
  MessageWorker(const MessageWorker&) = delete;
  MessageWorker& operator=(const MessageWorker&) = delete;
  ~MessageWorker() override { ranks_.give_back(transfers_, logits_); }

  MessageRanks& ranks() noexcept { return ranks_; }
  Communicator& communicator() noexcept override { return communicator_; }
  void fail(std::string_view reason) noexcept override { ranks_.fail(reason); }
  bool has_failed() const noexcept override { return ranks_.has_failed(); }
  std::string failure() const override { return ranks_.failure(); }

  bool next_step(StepBatch& batch) override {
    const std::vector<std::byte> message = wait_for_order(ranks_.messages(), [&] {
      ranks_.look();
      return ranks_.has_failed();
    });
    if (message.empty() || order_of(message) == Order::stop) return false;
    if (order_of(message) != Order::step) throw std::logic_error("rank 0 has sent something else than a step");
    decode_step(std::span(message).subspan(order_bytes), batch);
    ranks_.heartbeat();
    return true;
  }

  void report_done(std::span<const float> logits) override {
    if (!sends_logits_) return;
    for (auto& [request, other] : transfers_) {
      if (request != nullptr) ranks_.wait_for(request, other, "to take logits");
    }
    transfers_.clear();
    logits_.assign(logits.begin(), logits.end());  // the session's own are gone with the next step
    for_logit_pieces(logits_.size(), [&](std::size_t first, std::size_t count) {
      const auto bytes = std::as_bytes(std::span(logits_).subspan(first, count));
      transfers_.push_back({ranks_.start_send(0, message_tag::logits, bytes), 0});
    });
  }

 private:
  MessageRanks ranks_;
  MessageCommunicator communicator_;
  const bool sends_logits_;  ///< tensor rank 0 of the last stage, where that is another one than rank 0
  std::vector<float> logits_;
  std::vector<MessageTransfer> transfers_;  ///< of logits_
};

void reply(MessageRanks& ranks, std::uint32_t session, std::int32_t code, std::string_view text) {
  ranks.post(0, message_tag::reply, LoadReply{session, code, std::string(text)}.to_message());
}

std::string onnxruntime_path(const LoadOrder& order) {
  const char* const own = std::getenv("PRECAST_ONNXRUNTIME");
  return own != nullptr && *own != '\0' ? own : order.onnxruntime_path;
}

void run_engine(MessagePassing& messages, const LoadOrder& order, const RankPlace& place) {
  const std::uint32_t num_threads = threads_of_rank(order.num_threads, place.num_local_ranks);
  MessageWorker link(messages, order, spins_of(place.num_local_ranks, num_threads));
  std::unique_ptr<OrtSession> session;
  try {
    if (build_id(order.engine_dir) != order.build_id) {
      throw Error(ErrorCode::invalid_argument,
                  concat(order.engine_dir, " or precast differs from rank 0's: all ranks must run the same ones"));
    }
    session = load_rank(order.engine_dir, {.onnxruntime_path = onnxruntime_path(order),
                                           .num_threads = num_threads,
                                           .kernel_level = order.kernel_level,
                                           .num_blocks = order.num_blocks,
                                           .rank = messages.rank(),
                                           .communicator = &link.communicator()});
  } catch (const Error& error) {
    reply(link.ranks(), order.session, static_cast<std::int32_t>(error.code()), error.what());
    return;
  } catch (const std::exception& error) {
    reply(link.ranks(), order.session, static_cast<std::int32_t>(ErrorCode::internal), error.what());
    return;
  }
  link.ranks().post_log(static_cast<std::uint32_t>(LogLevel::info), describe_loaded(*session));
  reply(link.ranks(), order.session, 0, {});
  run_steps(*session, messages.rank(), link);
}

}  // namespace

std::uint32_t threads_of_rank(std::uint32_t num_threads, std::size_t num_local_ranks) {
  const std::uint32_t own = num_processors();
  const bool is_bound = own < static_cast<std::uint32_t>(std::max(1L, ::sysconf(_SC_NPROCESSORS_ONLN)));
  if (num_threads == 0 && is_bound) return own;
  return std::max(1U, (num_threads != 0 ? num_threads : own) / static_cast<std::uint32_t>(num_local_ranks));
}

void serve_rank(MessagePassing& messages, const RankPlace& place) {
  while (true) {
    const std::vector<std::byte> message = wait_for_order(messages, [] { return false; });
    const std::optional<Order> order = order_of(message);
    if (order == Order::end) {
      MessageRanks(messages, 0, {}).post(0, message_tag::end, {});
      return;
    }
    // Others are of an engine that this rank could not load, or that has failed.
    if (order != Order::load) continue;
    try {
      run_engine(messages, LoadOrder::from_message(message), place);
    } catch (const std::invalid_argument& error) {
      MessageRanks ranks(messages, LoadReply::any_session, {});
      reply(ranks, LoadReply::any_session, static_cast<std::int32_t>(ErrorCode::invalid_argument), error.what());
    }
  }
}

}  // namespace precast
