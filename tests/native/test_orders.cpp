// runtime/native/src/ranks/messages: what rank 0 tells the others.
#include "runtime/native/src/ranks/messages/orders.h"

#include <algorithm>

#include "runtime/native/src/ranks/messages/logit_pieces.h"
#include "runtime/native/src/ranks/messages/message_worker.h"
#include "runtime/native/src/ranks/rank_options.h"
#include "runtime/native/src/version.h"
#include "tests/native/check.h"
#include "tests/native/refusal.h"

namespace precast {

TEST("orders: what is to be loaded is what was said") {
  const LoadOrder order{.session = 7,
                        .build_id = 0xffff'ffff'ffff'fff0U,
                        .tensor_parallel_size = 4,
                        .engine_dir = "/a b/\n\xc3\xa9",
                        .onnxruntime_path = "",
                        .kernel_level = "avx2",
                        .num_threads = 3,
                        .num_blocks = 123'456,
                        .rank_timeout = std::chrono::milliseconds(60'000)};
  const LoadOrder read = LoadOrder::from_message(order.to_message());
  CHECK_EQ(read.session, order.session);
  CHECK_EQ(read.build_id, order.build_id);
  CHECK_EQ(read.tensor_parallel_size, order.tensor_parallel_size);
  CHECK_EQ(read.engine_dir, order.engine_dir);
  CHECK_EQ(read.onnxruntime_path, order.onnxruntime_path);
  CHECK_EQ(read.kernel_level, order.kernel_level);
  CHECK_EQ(read.num_threads, order.num_threads);
  CHECK_EQ(read.num_blocks, order.num_blocks);
  CHECK(read.rank_timeout == order.rank_timeout);
  CHECK(order_of(order.to_message()) == Order::load);
}

TEST("orders: another version is refused before anything else of it is read") {
  std::vector<std::byte> message = LoadOrder{}.to_message();
  const auto refusal = [&] { return test::refusal([&] { LoadOrder::from_message(message); }); };
  CHECK_EQ(refusal(), "accepted");
  message.resize(message.size() - 3);  // a field less
  CHECK_EQ(refusal(), "rank 0 runs precast " + std::string(version()) + ", and this is " + std::string(version()) +
                          ": all ranks must run the same one");
  message[order_bytes] = std::byte{'9'};
  CHECK(refusal().find("rank 0 runs precast 9") == 0);
  message.resize(order_bytes);
  CHECK(refusal().find("rank 0 runs precast unknown") == 0);
}

TEST("orders: replies are what was said") {
  const LoadReply read = LoadReply::from_message(LoadReply{7, -3, "no \n file"}.to_message());
  CHECK_EQ(read.session, 7U);
  CHECK_EQ(read.error_code, -3);
  CHECK_EQ(read.error, "no \n file");
  CHECK_EQ(LoadReply::from_message(LoadReply{}.to_message()).error, "");
  CHECK_THROWS(LoadReply::from_message(std::vector<std::byte>(7)));
}

TEST("orders: only orders are orders") {
  for (const Order order : {Order::load, Order::step, Order::stop, Order::end}) CHECK(order_of(to_message(order)) == order);
  CHECK(!order_of({}));
  CHECK(!order_of(std::vector<std::byte>(order_bytes)));
  CHECK(!order_of(std::vector<std::byte>(order_bytes, std::byte{5})));
  CHECK(!order_of(std::vector<std::byte>(order_bytes - 1, std::byte{1})));
}

TEST("orders: logits are sent in pieces that cover them once") {
  for (const std::size_t count : {std::size_t{0}, std::size_t{1}, std::size_t{1} << 24, (std::size_t{1} << 25) + 5}) {
    std::size_t covered = 0;
    std::size_t num_pieces = 0;
    for_logit_pieces(count, [&](std::size_t first, std::size_t size) {
      CHECK_EQ(first, covered);
      CHECK(size > 0 || count == 0);
      covered += size;
      ++num_pieces;
    });
    CHECK_EQ(covered, count);
    CHECK_EQ(num_pieces, std::max<std::size_t>(1, (count + (1 << 24) - 1) / (1 << 24)));
  }
}

TEST("orders: ranks of a host share its threads") {
  CHECK_EQ(threads_of_rank(8, 2), 4U);
  CHECK_EQ(threads_of_rank(8, 3), 2U);
  CHECK_EQ(threads_of_rank(1, 4), 1U);
  CHECK_EQ(threads_of_rank(0, 1), num_processors());
}

}  // namespace precast
