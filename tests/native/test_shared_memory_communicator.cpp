// plugins/collectives: ranks that meet in shared memory, as threads (which the thread sanitizer watches) and as processes.
#include "plugins/collectives/cpu/shared_memory_communicator.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstring>
#include <functional>
#include <random>
#include <thread>
#include <vector>

#include "tests/native/check.h"
#include "tests/native/parallel.h"
#include "tests/native/rank_numbers.h"

namespace precast {
namespace {

using test::expected_sum;
using test::number;
using test::numbers;
using test::same_bits;
using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr WaitOptions patient{.rank_timeout = milliseconds(20'000), .spins = 50};

// Small buffers and slots, so that messages have many pieces: 64 and 16 numbers.
RankMemorySizes sizes(std::size_t tensor_size, std::size_t pipeline_size = 1) {
  return {.tensor_parallel_size = tensor_size,
          .pipeline_parallel_size = pipeline_size,
          .buffer_bytes = 256,
          .slot_bytes = 128,
          .num_slots = 4};
}

// Runs every rank in a thread; what each of them throws, "" where it ends well.
std::vector<std::string> run_ranks(const std::shared_ptr<RankMemory>& memory, const WaitOptions& options,
                                   const std::function<void(SharedMemoryCommunicator&, std::size_t)>& body) {
  std::vector<std::string> errors(memory->sizes().world_size());
  std::vector<std::thread> threads;
  for (std::size_t rank = 0; rank < errors.size(); ++rank) {
    threads.emplace_back([&, rank] {
      try {
        SharedMemoryCommunicator communicator(memory, rank, options);
        body(communicator, rank);
      } catch (const CommunicatorError& error) {
        errors[rank] = error.what();
      } catch (const std::exception& error) {  // a failed CHECK: the others are not to wait for this rank
        errors[rank] = error.what();
        memory->fail(rank, error.what());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return errors;
}

bool all_well(const std::vector<std::string>& errors) {
  return std::ranges::all_of(errors, [](const std::string& error) { return error.empty(); });
}

}  // namespace

TEST("communicator: sums of every size have the bits of the ranks' order, whoever adds them up") {
  for (std::size_t num_ranks = 1; num_ranks <= 4; ++num_ranks) {
    for (const std::size_t shared_from : {std::size_t{1}, std::size_t{40}, std::size_t{1} << 20}) {
      const auto errors = run_ranks(RankMemory::create(sizes(num_ranks)), patient, [&](auto& communicator, std::size_t rank) {
        communicator.set_shared_sum_floats(shared_from);
        for (const std::size_t size : {0U, 1U, 2U, 3U, 15U, 63U, 64U, 65U, 127U, 128U, 129U, 300U}) {
          const std::vector<float> x = numbers(rank, size, 5);
          std::vector<float> y(size, -1.0f);
          communicator.all_reduce(x, y, ParallelFor::serial());
          CHECK(same_bits(y, expected_sum(num_ranks, size, 5)));
          std::vector<float> in_place = x;
          communicator.all_reduce(in_place, in_place, ParallelFor::serial());
          CHECK(same_bits(in_place, y));
        }
      });
      CHECK(all_well(errors));
    }
  }
}

TEST("communicator: sums of megabytes, with threads and without, in real buffers") {
  constexpr std::size_t num_ranks = 3;
  constexpr std::size_t size = 700'001;
  const std::vector<float> expected = expected_sum(num_ranks, size, 9);
  const auto memory = RankMemory::create({.tensor_parallel_size = num_ranks});
  const auto errors = run_ranks(memory, patient, [&](auto& communicator, std::size_t rank) {
    test::ThreadsForTests threads(2);
    const std::vector<float> x = numbers(rank, size, 9);
    std::vector<float> y(size);
    communicator.all_reduce(x, y, threads.parallel_for());
    CHECK(same_bits(y, expected));
    communicator.all_reduce(std::span(x).first(50'000), std::span(y).first(50'000), ParallelFor::serial());
    CHECK(same_bits({y.begin(), y.begin() + 50'000}, {expected.begin(), expected.begin() + 50'000}));
  });
  CHECK(all_well(errors));
}

TEST("communicator: columns lie side by side on the root, and padding is dropped") {
  for (std::size_t num_ranks = 1; num_ranks <= 4; ++num_ranks) {
    const auto errors = run_ranks(RankMemory::create(sizes(num_ranks)), patient, [&](auto& communicator, std::size_t rank) {
      for (const auto& [num_rows, num_columns, num_features] :
           {std::array<std::size_t, 3>{1, 1, 1}, {0, 5, 5}, {3, 7, 7 * num_ranks}, {3, 30, 30 * num_ranks - 4},
            {2, 100, 100 * num_ranks - 99}, {5, 64, 64}}) {
        for (std::size_t root = 0; root < num_ranks; ++root) {
          std::vector<float> x(num_rows * num_columns);
          for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(1000 * rank + i);
          std::vector<float> y(rank == root ? num_rows * num_features : 0, -1.0f);
          communicator.all_gather(x, num_rows, root, y, num_features, ParallelFor::serial());
          for (std::size_t i = 0; i < y.size(); ++i) {
            const std::size_t column = i % num_features;
            const std::size_t from = column / num_columns;
            CHECK_EQ(y[i], static_cast<float>(1000 * from + i / num_features * num_columns + column % num_columns));
          }
        }
      }
    });
    CHECK(all_well(errors));
  }
}

TEST("communicator: a stage runs ahead of the next one by as much as the channel holds") {
  const auto memory = RankMemory::create(sizes(2, 3));
  const auto errors = run_ranks(memory, patient, [&](auto& communicator, std::size_t rank) {
    std::mt19937 random(7);
    for (int step = 0; step < 200; ++step) {
      const std::size_t size = step % 50 == 49 ? 0 : random() % 100;
      std::vector<float> x = numbers(rank % 2, size, static_cast<std::uint32_t>(step));
      if (rank >= 2) {
        std::vector<float> y(size, -1.0f);
        communicator.receive(y);
        CHECK(same_bits(y, x));
      }
      if (rank < 4) {
        communicator.send(x);
        std::ranges::fill(x, 0.0f);  // it may be changed at once
      }
    }
  });
  CHECK(all_well(errors));
  // Four slots: four small messages are sent without anybody who receives them.
  SharedMemoryCommunicator first(RankMemory::create(sizes(1, 2)), 0, patient);
  for (int i = 0; i < 4; ++i) first.send(std::vector<float>(16));
}

TEST("communicator: counters wrap around") {
  const auto memory = RankMemory::create(sizes(2, 2));
  constexpr std::uint32_t nearly_over = 0xFFFFFFF8;
  for (std::size_t rank = 0; rank < 4; ++rank) {
    memory->state(rank).arrived = nearly_over;
    memory->channel(rank).sent = nearly_over;
    memory->channel(rank).received = nearly_over;
  }
  const auto errors = run_ranks(memory, patient, [](auto& communicator, std::size_t rank) {
    communicator.set_shared_sum_floats(30);
    for (std::uint32_t step = 0; step < 40; ++step) {
      std::vector<float> x = numbers(rank % 2, 20 + step, step);
      if (rank >= 2) {
        std::vector<float> received(x.size());
        communicator.receive(received);
        CHECK(same_bits(received, expected_sum(2, x.size(), step)));
      }
      communicator.all_reduce(x, x, ParallelFor::serial());
      CHECK(same_bits(x, expected_sum(2, x.size(), step)));
      if (rank < 2) communicator.send(x);
    }
  });
  CHECK(all_well(errors));
  CHECK(memory->state(0).arrived.load() < nearly_over);
  CHECK(memory->channel(0).sent.load() < nearly_over);
}

TEST("communicator: random steps of stages with several ranks") {
  for (std::uint32_t seed = 0; seed < 20; ++seed) {
    std::mt19937 random(seed);
    const std::size_t tensor_size = 1 + random() % 3;
    const std::size_t pipeline_size = 1 + random() % 3;
    const auto memory = RankMemory::create(sizes(tensor_size, pipeline_size));
    const auto errors = run_ranks(memory, patient, [&](auto& communicator, std::size_t rank) {
      std::mt19937 steps(seed);  // the same on all ranks
      communicator.set_shared_sum_floats(steps() % 100);
      const std::size_t stage = rank / tensor_size;
      for (std::uint32_t step = 0; step < 30; ++step) {
        const std::size_t size = steps() % 200;
        std::vector<float> x = numbers(rank % tensor_size, size, step);
        std::vector<float> received(size);
        if (stage > 0) {
          communicator.receive(received);
          CHECK(same_bits(received, expected_sum(tensor_size, size, step)));
        }
        for (std::uint32_t layer = 0; layer < 3; ++layer) {
          std::vector<float> sum(size);
          communicator.all_reduce(x, sum, ParallelFor::serial());
          CHECK(same_bits(sum, expected_sum(tensor_size, size, step)));
        }
        if (stage + 1 < pipeline_size) communicator.send(expected_sum(tensor_size, size, step));
      }
    });
    CHECK(all_well(errors));
  }
}

TEST("communicator: ranks that compute different steps are told so") {
  const auto sums = run_ranks(RankMemory::create(sizes(2)), patient, [](auto& communicator, std::size_t rank) {
    std::vector<float> x(10 + rank);
    communicator.all_reduce(x, x, ParallelFor::serial());
  });
  for (const std::string& error : sums) {
    CHECK(error.find("AllReduce of 10 numbers") != std::string::npos);
    CHECK(error.find("AllReduce of 11 numbers") != std::string::npos);  // whichever rank noticed it
    CHECK(error.find(": they compute different steps") != std::string::npos);
  }
  const auto kinds = run_ranks(RankMemory::create(sizes(2)), patient, [](auto& communicator, std::size_t rank) {
    std::vector<float> x(10);
    if (rank == 0) communicator.all_reduce(x, x, ParallelFor::serial());
    if (rank == 1) communicator.all_gather(x, 1, 0, {}, 20, ParallelFor::serial());
  });
  CHECK(kinds[0].find("AllReduce of 10 numbers") != std::string::npos);
  CHECK(kinds[1].find("AllGather of 10 numbers") != std::string::npos);
  const auto messages = run_ranks(RankMemory::create(sizes(1, 2)), patient, [](auto& communicator, std::size_t rank) {
    std::vector<float> x(10 + rank);
    rank == 0 ? communicator.send(x) : communicator.receive(x);
  });
  CHECK_EQ(messages[0], "");
  CHECK_EQ(messages[1], "rank 0 has sent 10 numbers, and rank 1 expects 11: they compute different steps");
}

TEST("communicator: a failure ends every wait at once, and every later call") {
  const auto memory = RankMemory::create(sizes(2, 2));
  std::thread supervisor([&] {
    std::this_thread::sleep_for(milliseconds(200));
    memory->fail(memory->watcher(), "rank 3 was killed by SIGKILL");
    memory->fail(memory->watcher(), "another reason, which comes too late");
  });
  const Clock::time_point start = Clock::now();
  const auto errors = run_ranks(memory, patient, [](auto& communicator, std::size_t rank) {
    std::vector<float> x(10);
    if (rank == 3) throw CommunicatorError("rank 3 was killed by SIGKILL");
    try {
      if (rank == 0) communicator.all_reduce(x, x, ParallelFor::serial());        // waits for rank 1
      if (rank == 1) while (true) communicator.send(x);                           // fills the channel
      if (rank == 2) communicator.all_gather(x, 1, 0, x, 10, ParallelFor::serial());  // waits for rank 3
      CHECK(false);
    } catch (const CommunicatorError&) {
      communicator.receive(x);
    }
  });
  supervisor.join();
  CHECK(Clock::now() - start < std::chrono::seconds(5));
  for (const std::string& error : errors) CHECK_EQ(error, "rank 3 was killed by SIGKILL");
}

TEST("communicator: a rank that does nothing is named, and one that is busy is waited for") {
  // Long enough for all threads to have started, on a machine that has other things to do.
  const WaitOptions slow{.rank_timeout = milliseconds(2000), .spins = 10};
  const WaitOptions hasty{.rank_timeout = milliseconds(300), .spins = 10};
  const auto hung = run_ranks(RankMemory::create(sizes(1, 3)), slow, [](auto& communicator, std::size_t rank) {
    std::vector<float> x(10);
    if (rank == 0) return;  // does not send
    communicator.receive(x);
    if (rank == 1) communicator.send(x);
  });
  CHECK_EQ(hung[0], "");
  // Rank 2 waits for rank 1, which waits for rank 0: that one is named by whoever gives up first.
  CHECK(hung[1].find("rank 0 has made no progress for 2 s, while rank ") == 0);
  CHECK_EQ(hung[2], hung[1]);
  const auto busy = run_ranks(RankMemory::create(sizes(2)), hasty, [](auto& communicator, std::size_t rank) {
    std::vector<float> x(10);
    for (int i = 0; rank == 1 && i < 15; ++i) {  // a long prompt: 1.5 s
      std::this_thread::sleep_for(milliseconds(100));
      communicator.heartbeat();
    }
    communicator.all_reduce(x, x, ParallelFor::serial());
  });
  CHECK(all_well(busy));
}

TEST("communicator: a rank that gives up is not seen idle before everybody knows who is stuck") {
  const WaitOptions hasty{.rank_timeout = milliseconds(20), .spins = 10};
  for (int i = 0; i < 20; ++i) {
    const auto memory = RankMemory::create(sizes(1, 2));
    std::atomic<std::size_t> num_idle{0};
    std::thread other([&] {  // as another rank sees it, which would name this one
      while (memory->state(1).signs().waits_for == 0 && !memory->has_failed()) std::this_thread::yield();
      while (!memory->has_failed()) {
        if (memory->state(1).signs().waits_for == 0 && !memory->has_failed()) ++num_idle;
      }
    });
    const auto errors = run_ranks(memory, hasty, [](auto& communicator, std::size_t rank) {
      std::vector<float> x(10);
      if (rank == 1) communicator.receive(x);
    });
    other.join();
    CHECK_EQ(errors[1], "rank 0 has made no progress for 0.02 s, while rank 1 waited for it to send");
    CHECK_EQ(num_idle.load(), std::size_t{0});
  }
}

TEST("communicator: a rank that waits no more is seen to have made progress") {
  constexpr std::uint32_t num_waits = 50'000;
  const auto memory = RankMemory::create(sizes(1));
  RankState& state = memory->state(0);
  std::size_t num_standing = 0;
  std::thread other([&] {
    std::uint32_t last_wait = 0;
    for (RankSigns signs; last_wait < num_waits;) {
      signs = state.signs();
      if (signs.waits_for != 0) last_wait = signs.waits_for;
      if (signs.waits_for == 0 && signs.progress < last_wait) ++num_standing;
      if (signs.progress == num_waits) break;
    }
  });
  for (std::uint32_t wait = 0; wait < num_waits; ++wait) {  // for a rank of the wait's number, as a mark of it
    state.show_waiting(wait);
    state.show_going_on();
  }
  other.join();
  CHECK_EQ(num_standing, std::size_t{0});
}

TEST("communicator: ranks that wait for each other in a circle do not wait for ever") {
  const WaitOptions hasty{.rank_timeout = milliseconds(300), .spins = 10};
  const Clock::time_point start = Clock::now();
  const auto errors = run_ranks(RankMemory::create(sizes(2, 2)), hasty, [](auto& communicator, std::size_t rank) {
    std::vector<float> x(500);  // more than a channel holds
    if (rank == 0) communicator.send(x);                                      // waits for rank 2
    if (rank == 1) communicator.all_reduce(x, x, ParallelFor::serial());      // for rank 0
    if (rank == 2) communicator.all_reduce(x, x, ParallelFor::serial());      // for rank 3
    if (rank == 3) communicator.receive(x);                                   // for rank 1
  });
  for (const std::string& error : errors) CHECK(error.find(" has made no progress for 0.3 s") != std::string::npos);
  CHECK(Clock::now() - start < std::chrono::seconds(5));
}

TEST("communicator: a sum does not depend on what the thread's floating point was set to") {
  const auto errors = run_ranks(RankMemory::create(sizes(2)), patient, [](auto& communicator, std::size_t) {
#if defined(__x86_64__)
    const unsigned before = __builtin_ia32_stmxcsr();
    __builtin_ia32_ldmxcsr(before | 0x8040);  // flush subnormal numbers to zero, as a host program may have it
#endif
    std::vector<float> x(10, 1e-40f);
    communicator.all_reduce(x, x, ParallelFor::serial());
#if defined(__x86_64__)
    __builtin_ia32_ldmxcsr(before);
#endif
    CHECK_EQ(x[9], 1e-40f + 1e-40f);
  });
  CHECK(all_well(errors));
}

TEST("communicator: the ends of a pipeline have nobody behind and nobody before them") {
  const auto errors = run_ranks(RankMemory::create(sizes(1, 2)), patient, [](auto& communicator, std::size_t rank) {
    std::vector<float> x(4);
    rank == 0 ? communicator.receive(x) : communicator.send(x);
  });
  CHECK_EQ(errors[0], "rank 0 is of the first stage, and there is none before");
  CHECK_EQ(errors[1], "rank 1 is of the last stage, and there is none to send to");
}

namespace {

// A process that runs `body` and ends with status 0 if that is true. The communicator is of memory that it inherited.
pid_t fork_rank(int descriptor, std::size_t rank, const std::function<bool(SharedMemoryCommunicator&)>& body) {
  const pid_t child = ::fork();
  if (child != 0) return child;
  try {
    SharedMemoryCommunicator communicator(RankMemory::open(SharedMemory::open(::dup(descriptor))), rank, patient);
    ::_exit(body(communicator) ? 0 : 1);
  } catch (const std::exception&) {
    ::_exit(2);
  }
}

int status_of(pid_t child) {
  int status = 0;
  CHECK_EQ(::waitpid(child, &status, 0), child);
  return status;
}

}  // namespace

TEST("communicator: processes that inherited the memory add up") {
  const auto memory = RankMemory::create(sizes(3));
  std::vector<pid_t> children;
  for (std::size_t rank = 0; rank < 3; ++rank) {
    children.push_back(fork_rank(memory->memory().descriptor(), rank, [rank](SharedMemoryCommunicator& communicator) {
      bool is_right = true;
      for (std::uint32_t i = 0; i < 200; ++i) {
        std::vector<float> x = numbers(rank, 100, i);
        communicator.all_reduce(x, x, ParallelFor::serial());
        is_right = is_right && same_bits(x, expected_sum(3, 100, i));
      }
      return is_right;
    }));
  }
  for (const pid_t child : children) CHECK_EQ(status_of(child), 0);
}

TEST("communicator: a process that is killed ends the others within a second of its supervisor's word") {
  const auto memory = RankMemory::create(sizes(3));
  std::vector<pid_t> children;
  for (std::size_t rank = 0; rank < 3; ++rank) {
    children.push_back(fork_rank(memory->memory().descriptor(), rank, [](SharedMemoryCommunicator& communicator) {
      std::vector<float> x(40, 1.0f);
      try {
        while (true) communicator.all_reduce(x, x, ParallelFor::serial());
      } catch (const CommunicatorError& error) {
        return std::string(error.what()) == "rank 1 was killed";
      }
    }));
  }
  std::this_thread::sleep_for(milliseconds(100));
  ::kill(children[1], SIGKILL);
  CHECK(WIFSIGNALED(status_of(children[1])));
  const Clock::time_point start = Clock::now();
  memory->fail(memory->watcher(), "rank 1 was killed");
  CHECK_EQ(status_of(children[0]), 0);
  CHECK_EQ(status_of(children[2]), 0);
  CHECK(Clock::now() - start < std::chrono::seconds(1));
}

TEST("communicator: memory of another layout, size or origin is refused") {
  const auto refusal = [](const std::shared_ptr<SharedMemory>& memory) {
    try {
      RankMemory::open(memory);
    } catch (const std::invalid_argument& error) {
      return std::string(error.what());
    }
    return std::string("accepted");
  };
  CHECK_EQ(refusal(SharedMemory::create(8192)), "the shared memory is not one of precast's ranks");
  CHECK_EQ(refusal(SharedMemory::create(64)), "the shared memory is not one of precast's ranks");
  const auto memory = RankMemory::create(sizes(2));
  const auto mapped = SharedMemory::open(::dup(memory->memory().descriptor()));
  CHECK(RankMemory::open(mapped)->sizes() == sizes(2));
  auto* const words = reinterpret_cast<std::uint32_t*>(mapped->data());
  words[2] = 7;
  CHECK_EQ(refusal(mapped), "the shared memory has layout 7, and this precast knows layout 2: all ranks must run the same version");
  words[2] = 2;
  words[3] = 64;  // slots
  CHECK(refusal(mapped).find(" bytes, and its header speaks of ") != std::string::npos);
  words[3] = 0;
  CHECK(refusal(mapped).find("cannot be laid out") != std::string::npos);

  const int unsealed = ::memfd_create("unsealed", MFD_CLOEXEC);
  bool refused = false;
  try {
    SharedMemory::open(unsealed);
  } catch (const std::invalid_argument&) {
    refused = true;
  }
  CHECK(refused);
  CHECK(::ftruncate(mapped->descriptor(), 10) != 0);  // sealed
  bool has_no_such_rank = false;
  try {
    SharedMemoryCommunicator communicator(RankMemory::create(sizes(2)), 2, patient);
  } catch (const CommunicatorError&) {
    has_no_such_rank = true;
  }
  CHECK(has_no_such_rank);
}

}  // namespace precast
