// Thousands of requests with random parameters through the C API, one in ten of them invalid, with random aborts and
// deadlines and a pool far too small. Every request must end exactly once, every block return, and no memory stay.
//
//     soak ENGINE NUM_REQUESTS SEED KV_CACHE_BYTES CAPACITY_POLICY
//
// Prints a line of figures; the exit status is 1 with a sentence on stderr where something is wrong. tests/runtime/test_soak.py
// compiles and runs it.
#include <malloc.h>
#include <precast.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <deque>
#include <fstream>
#include <map>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

namespace {

constexpr std::uint32_t max_batch_size = 16;
constexpr std::uint32_t max_num_tokens = 128;
constexpr std::uint32_t max_seq_len = 128;
constexpr std::uint64_t max_queue_size = 64;  // those that wait take memory, too, and no heap gives all of it back
constexpr std::int32_t vocab_size = 320;
constexpr int num_clients = 4;

[[noreturn]] void die(const std::string& why) {
  std::fprintf(stderr, "%s\n", why.c_str());
  std::exit(1);
}

void check(precast_error_t* error, const char* doing) {
  if (error != nullptr) die(std::string(doing) + ": " + precast_error_message(error));
}

std::int64_t now_ns() {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return std::int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
}

/// Bytes of this process in memory. What the allocator keeps for later is given back first: it is not ours.
std::int64_t resident_bytes() {
  ::malloc_trim(0);
  std::ifstream statm("/proc/self/statm");
  std::int64_t total = 0;
  std::int64_t resident = 0;
  statm >> total >> resident;
  return resident * ::sysconf(_SC_PAGESIZE);
}

std::uint64_t counter(const precast_engine_t* engine, const std::string& name) {
  char* json = nullptr;
  check(precast_engine_stats(engine, &json), "stats");
  const std::string text = json;
  precast_string_delete(json);
  const std::size_t at = text.find('"' + name + "\": ");
  if (at == std::string::npos) die("no counter " + name);
  return std::stoull(text.substr(at + name.size() + 4));
}

/// A request, and all that it points to.
struct Draft {
  std::vector<std::int32_t> prompt, stops, allowed, bad;
  std::vector<precast_logit_bias_t> bias;
  precast_token_sequence_t bad_word{};
  precast_retention_t retention{};
  precast_sampling_t sampling{};
  precast_request_t request{};
  bool is_invalid = false;
};

class Random {
 public:
  explicit Random(std::uint64_t seed) : engine_(seed) {}
  std::uint32_t below(std::uint32_t end) { return static_cast<std::uint32_t>(engine_() % end); }
  bool once_in(std::uint32_t n) { return below(n) == 0; }
  float fraction() { return static_cast<float>(below(1001)) / 1000.0F; }
  std::int32_t token() { return static_cast<std::int32_t>(below(static_cast<std::uint32_t>(vocab_size))); }

 private:
  std::mt19937_64 engine_;
};

void draw_sampling(Random& random, Draft& draft) {
  precast_sampling_t& sampling = draft.sampling;
  precast_sampling_init(&sampling, sizeof sampling);
  sampling.max_tokens = random.once_in(20) ? 0 : 1 + random.below(24);
  sampling.temperature = random.once_in(2) ? 0.0F : 2.0F * random.fraction();
  sampling.top_k = random.once_in(3) ? random.below(40) : 0;
  sampling.top_p = random.once_in(3) ? std::max(random.fraction(), 0.01F) : 1.0F;
  sampling.min_p = random.once_in(5) ? random.fraction() : 0.0F;
  sampling.seed = random.below(1000);
  sampling.ignore_eos = random.below(2);
  sampling.repetition_penalty = random.once_in(5) ? 0.5F + random.fraction() : 1.0F;
  sampling.presence_penalty = random.once_in(5) ? random.fraction() : 0.0F;
  sampling.frequency_penalty = random.once_in(5) ? -random.fraction() : 0.0F;
  sampling.num_logprobs = random.once_in(4) ? static_cast<std::int32_t>(random.below(6)) : -1;
  sampling.min_tokens = sampling.max_tokens == 0 ? 0 : random.below(sampling.max_tokens + 1);
  if (random.once_in(4)) draft.stops = {random.token(), random.token()};
  if (random.once_in(8)) draft.allowed = {random.token(), random.token(), random.token()};
  if (random.once_in(8)) draft.bad = {random.token(), random.token()};
  if (random.once_in(8)) draft.bias = {{random.token(), random.fraction()}, {random.token(), -5.0F}};
  sampling.stop_token_ids = draft.stops.data();
  sampling.num_stop_token_ids = draft.stops.size();
  sampling.allowed_token_ids = draft.allowed.data();
  sampling.num_allowed_token_ids = draft.allowed.size();
  draft.bad_word = {draft.bad.data(), draft.bad.size()};
  sampling.bad_words = &draft.bad_word;
  sampling.num_bad_words = draft.bad.empty() ? 0 : 1;
  sampling.logit_bias = draft.bias.data();
  sampling.num_logit_bias = draft.bias.size();
}

void draw_prompt(Random& random, Draft& draft) {
  const std::uint32_t prefix = random.once_in(2) ? random.below(64) : 0;
  const std::int32_t which = static_cast<std::int32_t>(random.below(4));
  for (std::uint32_t i = 0; i < prefix; ++i) {
    draft.prompt.push_back((which * 31 + static_cast<std::int32_t>(i) * 7) % vocab_size);
  }
  for (std::uint32_t i = 1 + random.below(30); i > 0; --i) draft.prompt.push_back(random.token());
}

void spoil(Random& random, Draft& draft) {
  draft.is_invalid = true;
  switch (random.below(8)) {
    case 0: draft.request.num_prompt_tokens = 0; break;
    case 1: draft.prompt[random.below(static_cast<std::uint32_t>(draft.prompt.size()))] = vocab_size; break;
    case 2: draft.prompt.assign(max_seq_len, 1); draft.request.num_prompt_tokens = draft.prompt.size(); break;
    case 3: draft.sampling.temperature = -1.0F; break;
    case 4: draft.sampling.top_p = 0.0F; break;
    case 5: draft.sampling.min_p = std::strtof("nan", nullptr); break;
    case 6: draft.request.n = 0; break;
    default: draft.sampling.repetition_penalty = 0.0F; break;
  }
  draft.request.prompt_token_ids = draft.prompt.data();
}

void draw(Random& random, std::uint64_t id, Draft& draft) {
  draw_prompt(random, draft);
  draw_sampling(random, draft);
  precast_request_t& request = draft.request;
  precast_request_init(&request, sizeof request);
  request.id = id;
  request.prompt_token_ids = draft.prompt.data();
  request.num_prompt_tokens = draft.prompt.size();
  request.sampling = &draft.sampling;
  request.n = random.once_in(6) ? 1 + random.below(3) : 1;
  request.priority = random.fraction();
  if (random.once_in(6)) request.deadline_ns = now_ns() + static_cast<std::int64_t>(random.below(200)) * 1'000'000 - 10'000'000;
  if (random.once_in(5)) {
    request.cache_salt = "tenant";
    request.cache_salt_size = 6;
  }
  request.skip_block_reuse = random.once_in(10) ? 1 : 0;
  if (random.once_in(6)) {
    draft.retention = {random.below(16), 0, random.below(101), random.below(2) * 50'000'000ULL};
    request.retention = &draft.retention;
    request.num_retention = 1;
  }
  if (random.once_in(10)) spoil(random, draft);
}

/// What is known of the unfinished requests, under a mutex of its own.
class Ledger {
 public:
  void submitted(std::uint64_t id, std::uint32_t n) {
    const std::lock_guard lock(mutex_);
    requests_[id].num_sequences = n;
  }
  void withdrawn(std::uint64_t id) {
    const std::lock_guard lock(mutex_);
    requests_.erase(id);
  }
  void event(const precast_event_t& event) {
    const std::lock_guard lock(mutex_);
    const auto found = requests_.find(event.request_id);
    const std::string name = "request " + std::to_string(event.request_id);
    if (found == requests_.end()) die(name + " has an event after its last one");
    Entry& entry = found->second;
    if (event.kind == PRECAST_EVENT_TOKEN) {
      ++entry.num_tokens;
      return;
    }
    ++reasons_[event.finish_reason];
    entry.num_reported += event.num_output_tokens;
    const bool is_over = ++entry.num_ended == entry.num_sequences;
    if ((event.is_last != 0) != is_over) die(name + " has ended another time than it should");
    if (!is_over) return;
    if (entry.num_tokens != entry.num_reported) die(name + " gave another number of tokens than it said");
    requests_.erase(found);
    ++num_over_;
  }
  std::size_t num_unfinished() {
    const std::lock_guard lock(mutex_);
    return requests_.size();
  }
  std::uint64_t num_over() const { return num_over_; }
  std::uint64_t num_ended_with(precast_finish_reason_t reason) { return reasons_[reason]; }

 private:
  struct Entry {
    std::uint32_t num_sequences = 0;
    std::uint32_t num_ended = 0;
    std::uint64_t num_tokens = 0;
    std::uint64_t num_reported = 0;
  };
  std::mutex mutex_;
  std::unordered_map<std::uint64_t, Entry> requests_;
  std::map<precast_finish_reason_t, std::uint64_t> reasons_;
  std::uint64_t num_over_ = 0;
};

struct Counts {
  std::atomic<std::uint64_t> refused = 0;
  std::atomic<std::uint64_t> queue_full = 0;
  std::atomic<std::uint64_t> cancelled = 0;
};

void submit_one(const precast_engine_t* engine, Ledger& ledger, Random& random, std::uint64_t id, Counts& counts) {
  Draft draft;
  draw(random, id, draft);
  const precast_request_t* pointer = &draft.request;
  ledger.submitted(id, draft.request.n);  // before its events can come
  for (;;) {
    std::uint32_t queued = 0;
    precast_error_t* error = precast_engine_submit(engine, &pointer, 1, &queued);
    if ((error != nullptr) != draft.is_invalid) {
      die(error != nullptr ? precast_error_message(error) : "an invalid request was taken");
    }
    if (error != nullptr) {
      if (precast_error_code(error) != PRECAST_ERROR_INVALID_ARGUMENT) die(precast_error_message(error));
      precast_error_delete(error);
      ++counts.refused;
      return ledger.withdrawn(id);
    }
    if (queued != 0) break;
    ++counts.queue_full;
    ::usleep(1000);
  }
  if (random.once_in(4)) {
    if (random.once_in(2)) ::usleep(random.below(3000));
    std::uint32_t found = 0;
    check(precast_engine_cancel(engine, id - random.below(20), &found), "cancel");
    counts.cancelled += found;
  }
}

void collect(const precast_engine_t* engine, Ledger& ledger, const std::atomic<bool>& all_submitted) {
  std::array<precast_event_t, 64> events{};
  while (!all_submitted || ledger.num_unfinished() > 0) {
    std::size_t count = 0;
    check(precast_engine_wait(engine, events.data(), sizeof events[0], events.size(), 10'000'000, &count), "wait");
    for (std::size_t i = 0; i < count; ++i) {
      ledger.event(events[i]);
      precast_event_clear(&events[i], sizeof events[i]);
    }
  }
}

void run_clients(const precast_engine_t* engine, Ledger& ledger, std::uint64_t num_requests, std::uint64_t seed, Counts& counts) {
  std::atomic<bool> all_submitted = false;
  std::thread collector([&] { collect(engine, ledger, all_submitted); });
  std::vector<std::thread> clients;
  for (std::uint64_t client = 0; client < num_clients; ++client) {
    clients.emplace_back([&, client] {
      Random random(seed * num_clients + client);
      for (std::uint64_t i = client; i < num_requests; i += num_clients) {
        submit_one(engine, ledger, random, (seed << 32) + 100 + i, counts);
      }
    });
  }
  for (std::thread& client : clients) client.join();
  all_submitted = true;
  collector.join();
}

/// The first exception of a process reads the unwinding tables of its libraries: pages of files, which count as resident.
void have_a_request_refused(const precast_engine_t* engine) {
  precast_request_t request;
  precast_request_init(&request, sizeof request);
  const precast_request_t* pointer = &request;
  precast_error_t* error = precast_engine_submit(engine, &pointer, 1, nullptr);
  if (error == nullptr) die("an invalid request was taken");
  precast_error_delete(error);
}

/// Whether an iteration since the last call was as large as can be, in tokens and in sequences.
bool was_maximal(const precast_engine_t* engine) {
  char* json = nullptr;
  check(precast_engine_iteration_stats(engine, &json), "iteration stats");
  const std::string text = json;
  precast_string_delete(json);
  const std::string all_sequences = "\"num_scheduled_requests\": " + std::to_string(max_batch_size) + ',';
  const std::string all_tokens = "\"num_context_tokens\": " + std::to_string(max_num_tokens) + ',';
  for (std::size_t start = 0, end = 0; (end = text.find('}', start)) != std::string::npos; start = end + 1) {
    const std::string iteration = text.substr(start, end - start);
    const bool has_all_sequences = iteration.find(all_sequences) != std::string::npos;
    if (has_all_sequences && iteration.find(all_tokens) != std::string::npos) return true;
  }
  return false;
}

/// The largest step that there can be: 16 prompts, 128 tokens, and parameters of all kinds. Half of the requests need a second
/// block before they end, so that every block of the pool is used.
void run_maximal_step(const precast_engine_t* engine, Ledger& ledger) {
  Random random(1);
  std::vector<Draft> drafts(max_batch_size);
  std::vector<const precast_request_t*> pointers;
  for (std::uint32_t i = 0; i < max_batch_size; ++i) {
    Draft& draft = drafts[i];
    draw_sampling(random, draft);
    draft.prompt.assign(max_num_tokens / max_batch_size, static_cast<std::int32_t>(i));
    draft.sampling.max_tokens = i % 2 == 0 ? 8 : 20;
    draft.sampling.min_tokens = draft.sampling.max_tokens;
    draft.sampling.num_logprobs = 5;
    precast_request_init(&draft.request, sizeof draft.request);
    draft.request.id = i;
    draft.request.prompt_token_ids = draft.prompt.data();
    draft.request.num_prompt_tokens = draft.prompt.size();
    draft.request.sampling = &draft.sampling;
    pointers.push_back(&draft.request);
    ledger.submitted(i, 1);
  }
  check(precast_engine_submit(engine, pointers.data(), pointers.size(), nullptr), "submit");
  const std::atomic<bool> all_submitted = true;
  collect(engine, ledger, all_submitted);
  if (!was_maximal(engine)) die("the first step was not as large as can be");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 6) die("usage: soak ENGINE NUM_REQUESTS SEED KV_CACHE_BYTES CAPACITY_POLICY");
  ::alarm(240);  // a hang is an error too
  ::setenv("PRECAST_AUDIT", "1", 1);
  ::mallopt(M_ARENA_MAX, 1);  // a heap for every client would be the test's memory, not the engine's
  precast_engine_options_t options;
  precast_engine_options_init(&options, sizeof options);
  options.num_threads = 2;
  options.max_batch_size = max_batch_size;
  options.max_num_tokens = max_num_tokens;
  options.max_seq_len = max_seq_len;
  options.max_queue_size = max_queue_size;
  options.kv_cache_bytes = std::stoull(argv[4]);
  options.capacity_policy = static_cast<precast_capacity_policy_t>(std::stoul(argv[5]));
  options.iteration_stats_size = 50;
  options.kv_events_size = 50;
  precast_engine_t* engine = nullptr;
  check(precast_engine_new(argv[1], &options, &engine), "load");

  have_a_request_refused(engine);
  {
    Ledger ledger;
    run_maximal_step(engine, ledger);
  }
  const std::int64_t before = resident_bytes();
  const std::uint64_t num_requests = std::stoull(argv[2]);
  Ledger ledger;
  Counts counts;
  run_clients(engine, ledger, num_requests, std::stoull(argv[3]), counts);
  if (ledger.num_over() + counts.refused != num_requests) die("requests are missing");
  const std::int64_t after = resident_bytes();

  // The last events are published before the counters that follow from them can be asked for.
  const std::uint64_t num_blocks = counter(engine, "num_blocks");
  if (counter(engine, "num_free_blocks") != num_blocks) die("blocks have not returned");
  std::printf(
      "refused %llu queue_full %llu cancelled %llu timeout %llu stop %llu length %llu error %llu preemptions %llu reused %llu "
      "blocks %llu before %lld after %lld\n",
      static_cast<unsigned long long>(counts.refused), static_cast<unsigned long long>(counts.queue_full),
      static_cast<unsigned long long>(ledger.num_ended_with(PRECAST_FINISH_CANCELLED)),
      static_cast<unsigned long long>(ledger.num_ended_with(PRECAST_FINISH_TIMEOUT)),
      static_cast<unsigned long long>(ledger.num_ended_with(PRECAST_FINISH_STOP)),
      static_cast<unsigned long long>(ledger.num_ended_with(PRECAST_FINISH_LENGTH)),
      static_cast<unsigned long long>(ledger.num_ended_with(PRECAST_FINISH_ERROR)),
      static_cast<unsigned long long>(counter(engine, "num_preemptions")),
      static_cast<unsigned long long>(counter(engine, "reused_blocks")), static_cast<unsigned long long>(num_blocks),
      static_cast<long long>(before), static_cast<long long>(after));
  precast_engine_delete(engine);
  return 0;
}
