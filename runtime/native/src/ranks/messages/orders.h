#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace precast {

/// What rank 0 tells another rank: messages whose first byte is one of these, in 8 bytes.
enum class Order : std::uint8_t {
  load = 1,  ///< an engine, with a LoadOrder
  step = 2,  ///< to compute, with an encoded step
  stop = 3,  ///< no step follows
  end = 4,   ///< no engine follows
};

inline constexpr std::size_t order_bytes = 8;  ///< so that what follows is aligned

/// The engine that ranks are to load, and how.
struct LoadOrder {
  std::uint32_t session = 0;   ///< counts engines up
  std::uint64_t build_id = 0;  ///< of rank 0
  std::size_t tensor_parallel_size = 1;
  std::string engine_dir;
  std::string onnxruntime_path;   ///< "": each rank finds its own
  std::string kernel_level;       ///< "": each rank's best
  std::uint32_t num_threads = 0;  ///< of all ranks of a host together; 0: its processors
  std::int32_t num_blocks = 0;
  std::chrono::milliseconds rank_timeout{0};

  /// The whole message.
  std::vector<std::byte> to_message() const;
  /// Throws std::invalid_argument for what another build of precast has sent.
  static LoadOrder from_message(std::span<const std::byte> message);
};

/// What becomes of it, to rank 0.
struct LoadReply {
  /// Of a rank that does not understand the order.
  static constexpr std::uint32_t any_session = 0;

  std::uint32_t session = any_session;  ///< of the order: where another rank could not load, nobody has read this one's reply
  std::int32_t error_code = 0;          ///< an ErrorCode; 0: it is loaded
  std::string error;

  std::vector<std::byte> to_message() const;
  /// Throws std::invalid_argument for what is no reply.
  static LoadReply from_message(std::span<const std::byte> message);
};

std::vector<std::byte> to_message(Order order);

/// Nothing where a message is none.
std::optional<Order> order_of(std::span<const std::byte> message) noexcept;

}  // namespace precast
