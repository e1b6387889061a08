/* SPDX-License-Identifier: Apache-2.0
 *
 * The inside of a server, without the network: many client threads share one engine.
 *
 *     c_api_server ENGINE [NUM_CLIENTS [REQUESTS_PER_CLIENT]]
 *
 *     clients  --submit, cancel-->  engine  --events-->  dispatcher  --each to its client-->  clients
 *
 * The dispatcher is an event loop: it sleeps in poll() on the engine's descriptor, where a server would have its sockets too.
 * Some clients hang up before their answer is complete, and every request has a time limit.
 */
#include <poll.h>
#include <precast.h>
#include <time.h>

#include <array>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

namespace {

constexpr std::int64_t time_limit_ns = 30'000'000'000;

[[noreturn]] void die(const std::string& why) {
  std::fprintf(stderr, "%s\n", why.c_str());
  std::exit(1);
}

void check(precast_error_t* error, const char* doing) {
  if (error != nullptr) die(std::string(doing) + ": " + precast_error_message(error));
}

std::int64_t now_ns() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return std::int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
}

/* What a client waits for: the events of one request, in order. */
class Mailbox {
 public:
  void put(precast_event_t event) {
    const std::lock_guard lock(mutex_);
    events_.push_back(event);
    changed_.notify_one();
  }

  /* The caller clears the event. */
  precast_event_t get() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return !events_.empty(); });
    const precast_event_t event = events_.front();
    events_.pop_front();
    return event;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<precast_event_t> events_;
};

/* Which request belongs to which client. */
class Router {
 public:
  std::shared_ptr<Mailbox> open(std::uint64_t id) {
    const std::lock_guard lock(mutex_);
    return mailboxes_[id] = std::make_shared<Mailbox>();
  }

  void deliver(const precast_event_t& event) {
    std::shared_ptr<Mailbox> mailbox;
    {
      const std::lock_guard lock(mutex_);
      mailbox = mailboxes_.at(event.request_id);
      if (event.is_last != 0) mailboxes_.erase(event.request_id);
    }
    mailbox->put(event);
  }

 private:
  std::mutex mutex_;
  std::unordered_map<std::uint64_t, std::shared_ptr<Mailbox>> mailboxes_;
};

/* Until the engine is shut down and every event has been delivered. */
void dispatch(const precast_engine_t* engine, Router& router) {
  int descriptor = -1;
  check(precast_engine_event_fd(engine, &descriptor), "asking for the descriptor");
  for (;;) {
    pollfd polled{descriptor, POLLIN, 0};
    if (poll(&polled, 1, -1) < 0) continue; /* a signal */
    std::array<precast_event_t, 32> events{};
    std::size_t count = 0;
    precast_error_t* error =
        precast_engine_wait(engine, events.data(), sizeof events[0], events.size(), /*timeout_ns=*/0, &count);
    if (error != nullptr) {
      const bool is_over = precast_error_code(error) == PRECAST_ERROR_SHUT_DOWN;
      if (!is_over) die(precast_error_message(error));
      precast_error_delete(error);
      return;
    }
    for (std::size_t i = 0; i < count; ++i) router.deliver(events[i]);
  }
}

struct Totals {
  std::uint64_t completed = 0;
  std::uint64_t hung_up = 0;
  std::uint64_t failed = 0;
  std::uint64_t tokens = 0;

  void add(const Totals& other) {
    completed += other.completed;
    hung_up += other.hung_up;
    failed += other.failed;
    tokens += other.tokens;
  }
};

/* One client: asks, reads the answer as it comes, and sometimes hangs up in the middle. */
class Client {
 public:
  Client(const precast_engine_t* engine, Router& router, unsigned number) : engine_(engine), router_(router), random_(number) {}

  void ask(std::uint64_t id, Totals& totals) {
    /* All clients share the beginning of their prompts, as users of one system prompt do: it is computed once. */
    std::vector<std::int32_t> prompt(20, 2);
    for (auto i = 1 + random_() % 20; i > 0; --i) prompt.push_back(static_cast<std::int32_t>(3 + random_() % 200));
    precast_sampling_t sampling;
    precast_sampling_init(&sampling, sizeof sampling);
    sampling.max_tokens = 1 + static_cast<std::uint32_t>(random_() % 24);
    sampling.seed = random_();
    precast_request_t request;
    precast_request_init(&request, sizeof request);
    request.id = id;
    request.prompt_token_ids = prompt.data();
    request.num_prompt_tokens = prompt.size();
    request.sampling = &sampling;
    request.deadline_ns = now_ns() + time_limit_ns;

    const std::shared_ptr<Mailbox> mailbox = router_.open(id); /* before the first event can come */
    const precast_request_t* pointer = &request;
    check(precast_engine_submit(engine_, &pointer, 1, nullptr), "submitting");
    read(id, *mailbox, /*hangs_up=*/random_() % 5 == 0, totals);
  }

 private:
  void read(std::uint64_t id, Mailbox& mailbox, bool hangs_up, Totals& totals) {
    for (;;) {
      precast_event_t event = mailbox.get();
      if (event.kind == PRECAST_EVENT_TOKEN) {
        ++totals.tokens;
        if (std::exchange(hangs_up, false)) check(precast_engine_cancel(engine_, id, nullptr), "cancelling");
      } else if (event.finish_reason == PRECAST_FINISH_CANCELLED) {
        ++totals.hung_up;
      } else if (event.finish_reason == PRECAST_FINISH_ERROR) {
        std::fprintf(stderr, "request %llu: %s\n", static_cast<unsigned long long>(id), precast_error_message(event.error));
        ++totals.failed;
      } else {
        ++totals.completed;
      }
      const bool is_last = event.is_last != 0;
      precast_event_clear(&event, sizeof event);
      if (is_last) return;
    }
  }

  const precast_engine_t* engine_;
  Router& router_;
  std::mt19937 random_;
};

void print(const precast_engine_t* engine, const Totals& totals) {
  char* stats = nullptr;
  check(precast_engine_stats(engine, &stats), "asking for statistics");
  std::printf("%llu completed, %llu hung up, %llu failed, %llu tokens\n%s\n",
              static_cast<unsigned long long>(totals.completed), static_cast<unsigned long long>(totals.hung_up),
              static_cast<unsigned long long>(totals.failed), static_cast<unsigned long long>(totals.tokens), stats);
  precast_string_delete(stats);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2 || argc > 4) die("usage: c_api_server ENGINE [NUM_CLIENTS [REQUESTS_PER_CLIENT]]");
  const unsigned num_clients = argc > 2 ? static_cast<unsigned>(std::stoul(argv[2])) : 16;
  const unsigned per_client = argc > 3 ? static_cast<unsigned>(std::stoul(argv[3])) : 10;

  precast_engine_options_t options;
  precast_engine_options_init(&options, sizeof options);
  options.capacity_policy = PRECAST_CAPACITY_MAX_UTILIZATION;
  options.log = [](void*, precast_log_level_t level, const char* message) {
    std::fprintf(stderr, "%s: %s\n", level == PRECAST_LOG_INFO ? "info" : "warning", message);
  };
  precast_engine_t* engine = nullptr;
  check(precast_engine_new(argv[1], &options, &engine), "loading");

  Router router;
  std::thread dispatcher(dispatch, engine, std::ref(router));
  std::vector<Totals> of_clients(num_clients);
  std::vector<std::thread> clients;
  for (unsigned number = 0; number < num_clients; ++number) {
    clients.emplace_back([&, number] {
      Client client(engine, router, number);
      for (unsigned i = 0; i < per_client; ++i) client.ask(std::uint64_t{number} * per_client + i, of_clients[number]);
    });
  }
  for (std::thread& client : clients) client.join();
  Totals totals;
  for (const Totals& one : of_clients) totals.add(one);
  print(engine, totals);

  check(precast_engine_shutdown(engine), "shutting down"); /* lets the dispatcher return */
  dispatcher.join();
  precast_engine_delete(engine);
  return totals.failed == 0 ? 0 : 1;
}
