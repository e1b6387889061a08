#include "runtime/native/src/ranks/messages/orders.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string_view>

#include "runtime/native/src/concat.h"
#include "runtime/native/src/version.h"

namespace precast {
namespace {

constexpr std::size_t num_fields = 10;

}  // namespace

std::vector<std::byte> to_message(Order order) {
  std::vector<std::byte> message(order_bytes);
  message[0] = static_cast<std::byte>(order);
  return message;
}

std::optional<Order> order_of(std::span<const std::byte> message) noexcept {
  if (message.size() < order_bytes) return std::nullopt;
  const auto order = static_cast<Order>(message[0]);
  if (order < Order::load || order > Order::end) return std::nullopt;
  return order;
}

std::vector<std::byte> LoadOrder::to_message() const {
  // Neither a path nor a number has a zero byte in it.
  const std::string fields[num_fields] = {std::string(version()),
                                          std::to_string(session),
                                          std::to_string(build_id),
                                          std::to_string(tensor_parallel_size),
                                          engine_dir,
                                          onnxruntime_path,
                                          kernel_level,
                                          std::to_string(num_threads),
                                          std::to_string(num_blocks),
                                          std::to_string(rank_timeout.count())};
  std::vector<std::byte> message = precast::to_message(Order::load);
  for (const std::string& field : fields) {
    const auto bytes = std::as_bytes(std::span(field.c_str(), field.size() + 1));
    message.insert(message.end(), bytes.begin(), bytes.end());
  }
  return message;
}

std::vector<std::byte> LoadReply::to_message() const {
  std::vector<std::byte> message(sizeof session + sizeof error_code + error.size());
  std::memcpy(message.data(), &session, sizeof session);
  std::memcpy(message.data() + sizeof session, &error_code, sizeof error_code);
  std::ranges::copy(std::as_bytes(std::span(error)), message.begin() + sizeof session + sizeof error_code);
  return message;
}

LoadReply LoadReply::from_message(std::span<const std::byte> message) {
  LoadReply reply;
  constexpr std::size_t header = sizeof reply.session + sizeof reply.error_code;
  if (message.size() < header) throw std::invalid_argument("a rank's reply is cut short");
  std::memcpy(&reply.session, message.data(), sizeof reply.session);
  std::memcpy(&reply.error_code, message.data() + sizeof reply.session, sizeof reply.error_code);
  reply.error.assign(reinterpret_cast<const char*>(message.data()) + header, message.size() - header);
  return reply;
}

LoadOrder LoadOrder::from_message(std::span<const std::byte> message) {
  std::vector<std::string> fields;
  std::string_view rest(reinterpret_cast<const char*>(message.data()) + order_bytes, message.size() - order_bytes);
  for (std::size_t end = rest.find('\0'); end != std::string_view::npos; end = rest.find('\0')) {
    fields.emplace_back(rest.substr(0, end));
    rest.remove_prefix(end + 1);
  }
  const std::string theirs = fields.empty() ? "unknown" : fields[0];
  if (theirs != version() || fields.size() != num_fields) {
    throw std::invalid_argument(concat("rank 0 runs precast ", theirs, ", and this is ", version(),
                                       ": all ranks must run the same one"));
  }
  return {.session = static_cast<std::uint32_t>(std::stoul(fields[1])),
          .build_id = std::stoull(fields[2]),
          .tensor_parallel_size = std::stoull(fields[3]),
          .engine_dir = fields[4],
          .onnxruntime_path = fields[5],
          .kernel_level = fields[6],
          .num_threads = static_cast<std::uint32_t>(std::stoul(fields[7])),
          .num_blocks = static_cast<std::int32_t>(std::stol(fields[8])),
          .rank_timeout = std::chrono::milliseconds(std::stoll(fields[9]))};
}

}  // namespace precast
