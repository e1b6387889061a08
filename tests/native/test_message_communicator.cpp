// plugins/collectives: ranks that meet by messages, between threads, which the thread sanitizer watches.
#include "plugins/collectives/cpu/message_communicator.h"

#include <algorithm>
#include <chrono>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "plugins/collectives/cpu/message_ranks.h"
#include "tests/native/check.h"
#include "tests/native/fake_messages.h"
#include "tests/native/parallel.h"
#include "tests/native/rank_numbers.h"

namespace precast {
namespace {

using std::chrono::milliseconds;
using test::expected_sum;
using test::FakeMessages;
using test::FakeNetwork;
using test::numbers;
using test::same_bits;
using Clock = std::chrono::steady_clock;

constexpr WaitOptions patient{.rank_timeout = milliseconds(20'000), .spins = 50};
constexpr WaitOptions hasty{.rank_timeout = milliseconds(400), .spins = 50};

struct Rank {
  MessageRanks& ranks;
  MessageCommunicator& communicator;
  std::size_t rank;
};

// Runs every rank in a thread; what each of them throws, "" where it ends well.
std::vector<std::string> run_ranks(FakeNetwork& network, std::size_t tensor_size, const WaitOptions& options,
                                   const std::function<void(Rank)>& body) {
  std::vector<std::string> errors(network.num_ranks());
  std::vector<std::thread> threads;
  for (std::size_t rank = 0; rank < errors.size(); ++rank) {
    threads.emplace_back([&, rank] {
      FakeMessages messages(network, rank);
      MessageRanks ranks(messages, 1, options);
      try {
        MessageCommunicator communicator(ranks, tensor_size);
        body({ranks, communicator, rank});
      } catch (const CommunicatorError& error) {
        errors[rank] = error.what();
      } catch (const std::exception& error) {  // a failed CHECK: the others are not to wait for this rank
        errors[rank] = error.what();
        ranks.fail(error.what());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return errors;
}

bool all_well(const std::vector<std::string>& errors) {
  for (const std::string& error : errors) {
    if (!error.empty()) std::fprintf(stderr, "%s\n", error.c_str());
  }
  return std::ranges::all_of(errors, [](const std::string& error) { return error.empty(); });
}

}  // namespace

TEST("messages: sums of every size have the bits of the ranks' order, whoever adds them up") {
  for (std::size_t num_ranks = 1; num_ranks <= 5; ++num_ranks) {
    for (const std::size_t shared_from : {std::size_t{1}, std::size_t{40}, std::size_t{1} << 20}) {
      FakeNetwork network(num_ranks);
      CHECK(all_well(run_ranks(network, num_ranks, patient, [&](Rank self) {
        self.communicator.set_shared_sum_floats(shared_from);
        for (const std::size_t size : {0U, 1U, 2U, 3U, 15U, 63U, 64U, 65U, 129U, 300U}) {
          const std::vector<float> x = numbers(self.rank, size, 5);
          std::vector<float> y(size, -1.0f);
          self.communicator.all_reduce(x, y, ParallelFor::serial());
          CHECK(same_bits(y, expected_sum(num_ranks, size, 5)));
          std::vector<float> in_place = x;
          self.communicator.all_reduce(in_place, in_place, ParallelFor::serial());
          CHECK(same_bits(in_place, y));
        }
      })));
    }
  }
}

TEST("messages: sums in threads have the same bits, and each stage sums for itself") {
  FakeNetwork network(6);
  constexpr std::size_t size = 200'001;
  CHECK(all_well(run_ranks(network, 3, patient, [&](Rank self) {
    const std::size_t stage = self.rank / 3;
    std::vector<float> sum(size);
    for (std::size_t rank = 0; rank < 3; ++rank) {
      const std::vector<float> x = numbers(3 * stage + rank, size, 2);
      for (std::size_t i = 0; i < size; ++i) sum[i] = rank == 0 ? x[i] : sum[i] + x[i];
    }
    for (const bool is_shared : {false, true}) {
      self.communicator.set_shared_sum_floats(is_shared ? 1 : size + 1);
      std::vector<float> x = numbers(self.rank, size, 2);
      self.communicator.all_reduce(x, x, test::ThreadsForTests(2).parallel_for());
      CHECK(same_bits(x, sum));
    }
  })));
}

TEST("messages: columns are gathered at the root, whichever rank that is, without the padding") {
  FakeNetwork network(3);
  CHECK(all_well(run_ranks(network, 3, patient, [](Rank self) {
    for (std::size_t root = 0; root < 3; ++root) {
      for (const std::size_t num_features : {std::size_t{12}, std::size_t{10}, std::size_t{7}, std::size_t{3}}) {
        const std::vector<float> x = numbers(self.rank, 5 * 4, 3);
        std::vector<float> y(self.rank == root ? 5 * num_features : 0);
        self.communicator.all_gather(x, 5, root, y, num_features, ParallelFor::serial());
        for (std::size_t i = 0; i < y.size(); ++i) {
          const std::size_t row = i / num_features;
          const std::size_t column = i % num_features;
          CHECK_EQ(y[i], test::number(column / 4, row * 4 + column % 4, 3));
        }
      }
    }
    self.communicator.all_gather({}, 0, 0, {}, 5, ParallelFor::serial());
  })));
}

TEST("messages: a stage's messages arrive in order, whole, also more than may be on their way") {
  FakeNetwork network(4);
  CHECK(all_well(run_ranks(network, 2, patient, [](Rank self) {
    for (std::uint32_t turn = 0; turn < 50; ++turn) {
      const std::size_t size = turn % 7 * 11;
      if (self.rank < 2) {
        std::vector<float> x = numbers(self.rank, size, turn);
        self.communicator.send(x);
        std::ranges::fill(x, 0.0f);  // may be changed
      } else {
        std::vector<float> y(size, -1.0f);
        self.communicator.receive(y);
        CHECK(same_bits(y, numbers(self.rank - 2, size, turn)));
      }
    }
  })));
}

TEST("messages: ranks that compute different steps say so") {
  FakeNetwork network(2);
  const auto sizes = run_ranks(network, 2, patient, [](Rank self) {
    std::vector<float> x(10 - self.rank);
    self.communicator.all_reduce(x, x, ParallelFor::serial());
  });
  // Who is sent less can say of what; who is sent more than it has room for says that.
  CHECK(sizes[0].find("rank 0 comes to an AllReduce of 10 numbers, and rank 1 to an AllReduce of 9") == 0 ||
        sizes[0].find("rank 1 waited for rank 0 to meet it: a message is longer than its receiver has room for") == 0);
  FakeNetwork kinds(2);
  const auto different = run_ranks(kinds, 2, patient, [](Rank self) {
    std::vector<float> x(10);
    std::vector<float> y(20);
    if (self.rank == 0) self.communicator.all_reduce(x, x, ParallelFor::serial());
    if (self.rank == 1) {
      self.communicator.all_gather(x, 1, 0, y, 20, ParallelFor::serial());
      while (true) self.communicator.all_reduce(x, x, ParallelFor::serial());
    }
  });
  CHECK_EQ(different[0], "rank 0 comes to an AllReduce of 10 numbers, and rank 1 to an AllGather of 10 numbers: they compute different steps");
  CHECK_EQ(different[1], different[0]);
  FakeNetwork pipe(2);
  const auto stages = run_ranks(pipe, 1, patient, [](Rank self) {
    std::vector<float> x(self.rank == 0 ? 10 : 4);
    if (self.rank == 0) self.communicator.send(x);
    self.communicator.receive(x);
  });
  CHECK_EQ(stages[0], "rank 0 is of the first stage, and there is none before");
  CHECK_EQ(stages[1], "rank 0 has sent 10 numbers, and rank 1 expects 4: they compute different steps");
}

TEST("messages: a failure ends every wait of every rank, with its reason") {
  FakeNetwork network(4);
  const Clock::time_point start = Clock::now();
  const auto errors = run_ranks(network, 2, patient, [](Rank self) {
    std::vector<float> x(10);
    if (self.rank == 3) throw std::runtime_error("rank 3: no memory");
    if (self.rank == 2) self.communicator.receive(x);
    while (true) self.communicator.all_reduce(x, x, ParallelFor::serial());
  });
  CHECK(Clock::now() - start < std::chrono::seconds(5));
  for (const std::string& error : errors) CHECK_EQ(error, "rank 3: no memory");
}

TEST("messages: a rank that is silent is named, though others wait for one that waits for it") {
  FakeNetwork network(3);
  const auto errors = run_ranks(network, 1, hasty, [](Rank self) {
    std::vector<float> x(10);
    if (self.rank == 0) std::this_thread::sleep_for(milliseconds(1500));  // sends nothing, and says nothing
    if (self.rank != 0) self.communicator.receive(x);
  });
  CHECK(errors[1].find("rank 0 has made no progress for 0.4 s, while rank ") == 0);
  CHECK_EQ(errors[2], errors[1]);
}

TEST("messages: a rank whose messages are lost is named") {
  FakeNetwork network(3);
  const auto errors = run_ranks(network, 3, hasty, [&](Rank self) {
    std::vector<float> x(10);
    for (int turn = 0;; ++turn) {
      if (self.rank == 1 && turn == 20) network.cut(1);
      self.communicator.all_reduce(x, x, ParallelFor::serial());
    }
  });
  CHECK(errors[0].find("rank 1 has made no progress for 0.4 s") == 0);
  CHECK(errors[2].find("rank 1 has made no progress for 0.4 s") == 0);
}

TEST("messages: a rank that is busy is waited for") {
  FakeNetwork network(2);
  CHECK(all_well(run_ranks(network, 2, hasty, [](Rank self) {
    std::vector<float> x(10);
    for (int node = 0; self.rank == 1 && node < 30; ++node) {  // a long prompt: 1.5 s
      std::this_thread::sleep_for(milliseconds(50));
      self.communicator.heartbeat();
    }
    self.communicator.all_reduce(x, x, ParallelFor::serial());
  })));
}

TEST("messages: what is said for the log comes to rank 0, and what an earlier engine said does not") {
  FakeNetwork network(2);
  FakeMessages first(network, 0);
  FakeMessages second(network, 1);
  std::vector<std::string> said;
  {
    MessageRanks earlier(second, 1, patient);
    earlier.post_log(1, "before");
    earlier.fail("long ago");
  }
  MessageRanks leader(first, 2, patient);
  leader.on_log = [&](std::size_t from, std::uint32_t level, std::string text) {
    said.push_back(std::to_string(from) + " " + std::to_string(level) + " " + text);
  };
  MessageRanks worker(second, 2, patient);
  worker.post_log(2, "hello");
  worker.post_log(3, std::string(5000, 'x'));
  worker.look();
  leader.look();
  CHECK(!leader.has_failed());
  CHECK_EQ(said.size(), 2U);
  CHECK_EQ(said[0], "1 2 hello");
  CHECK_EQ(said[1].size(), 4 + 900U);
}

}  // namespace precast
