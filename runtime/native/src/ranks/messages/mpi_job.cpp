#include "runtime/native/src/ranks/messages/mpi_job.h"

#include <dlfcn.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "plugins/collectives/cpu/message_ranks.h"
#include "runtime/native/src/concat.h"
#include "runtime/native/src/error.h"
#include "runtime/native/src/ranks/messages/message_worker.h"
#include "runtime/native/src/ranks/messages/orders.h"

namespace precast {
namespace {

constexpr std::chrono::seconds patience{10};  // with ranks that are told to end
constexpr const char* advice = "build it with `precast build-mpi` where the MPI library is";

const precast_mpi_t* open_library(const std::string& path) {
  // MPI libraries find their own plugins by global names.
  void* const handle = ::dlopen(path.c_str(), RTLD_NOW | RTLD_GLOBAL | RTLD_NODELETE);
  if (handle == nullptr) {
    throw Error(ErrorCode::not_found, concat("cannot open precast's part for MPI: ", ::dlerror(), "; ", advice));
  }
  using Entry = const precast_mpi_t* (*)();
  const auto entry = reinterpret_cast<Entry>(::dlsym(handle, "precast_mpi_table"));
  const precast_mpi_t* const mpi = entry != nullptr ? entry() : nullptr;
  if (mpi == nullptr || mpi->abi != PRECAST_MPI_ABI) {
    throw Error(ErrorCode::not_found, concat(quote(path), " is not this precast's part for MPI; ", advice));
  }
  return mpi;
}

/// Sees to it that this process does not outlive what has started it, even where that ends while this one is stopped. The
/// kernel means the thread that has started it, so that only a parent with a single one is meant: mpiexec's, not Slurm's,
/// which looks after its processes itself.
void end_with_launcher() {
  std::error_code ignored;
  std::size_t num_threads = 0;
  const std::string threads = concat("/proc/", ::getppid(), "/task");
  for ([[maybe_unused]] const auto& thread : std::filesystem::directory_iterator(threads, ignored)) ++num_threads;
  if (num_threads == 1) ::prctl(PR_SET_PDEATHSIG, SIGKILL);
}

void check(const char* error) {
  if (error != nullptr) throw MessageError(error);
}

}  // namespace

MpiMessages::MpiMessages(const std::string& path) : mpi_(open_library(path)) {
  int rank = 0;
  int num_ranks = 0;
  int num_local = 0;
  // `precast launch` asks in this way whether its program has started MPI, or tried to: it is started once.
  if (const char* const mark = std::getenv("PRECAST_MPI_UNSTARTED"); mark != nullptr) ::unlink(mark);
  if (const char* const error = mpi_->init(&rank, &num_ranks, &num_local); error != nullptr) {
    throw Error(ErrorCode::rank_failed, error);
  }
  rank_ = static_cast<std::size_t>(rank);
  num_ranks_ = static_cast<std::size_t>(num_ranks);
  num_local_ranks_ = static_cast<std::size_t>(num_local);
}

MessagePassing::Request MpiMessages::start_send(std::size_t to, int tag, std::span<const std::byte> bytes) {
  Request request = nullptr;
  check(mpi_->start_send(static_cast<int>(to), tag, bytes.data(), bytes.size(), &request));
  return request;
}

MessagePassing::Request MpiMessages::start_receive(std::size_t from, int tag, std::span<std::byte> bytes) {
  Request request = nullptr;
  check(mpi_->start_receive(static_cast<int>(from), tag, bytes.data(), bytes.size(), &request));
  return request;
}

std::optional<std::size_t> MpiMessages::test(Request& request) {
  int is_done = 0;
  std::size_t num_bytes = 0;
  check(mpi_->test(&request, &is_done, &num_bytes));
  return is_done != 0 ? std::optional(num_bytes) : std::nullopt;
}

std::optional<MessagePassing::Envelope> MpiMessages::probe(int tag, std::optional<std::size_t> from) {
  int is_there = 0;
  int source = 0;
  std::size_t num_bytes = 0;
  check(mpi_->probe(from ? static_cast<int>(*from) : -1, tag, &is_there, &source, &num_bytes));
  if (is_there == 0) return std::nullopt;
  return Envelope{static_cast<std::size_t>(source), num_bytes};
}

void MpiMessages::abandon(Request& request) noexcept { mpi_->abandon(&request); }

void MpiMessages::finalize() noexcept { mpi_->finalize(); }

void MpiMessages::abort() noexcept { mpi_->abort(1); }

MpiJob& MpiJob::open(const std::string& path) {
  static MpiJob job(path);
  return job;
}

MpiJob::MpiJob(const std::string& path) : messages_(path), process_(::getpid()) {}

MpiJob::~MpiJob() {
  if (::getpid() != process_) return;  // a fork has nothing to end
  // A rank that hangs would let MPI's own end hang too; so would an engine that is still at work.
  if (failure_.empty() && !has_session_ && (messages_.rank() != 0 || end_others())) {
    messages_.finalize();
  } else {
    messages_.abort();
  }
}

bool MpiJob::end_others() noexcept {
  try {
    std::vector<bool> has_ended(messages_.num_ranks());
    has_ended[0] = true;
    const std::vector<std::byte> order = to_message(Order::end);
    std::vector<MessagePassing::Request> requests;
    for (std::size_t rank = 1; rank < messages_.num_ranks(); ++rank) {
      requests.push_back(messages_.start_send(rank, message_tag::order, order));
    }
    const auto deadline = std::chrono::steady_clock::now() + patience;
    while (std::ranges::count(has_ended, false) != 0) {
      for (MessagePassing::Request& request : requests) {
        if (request != nullptr) messages_.test(request);
      }
      if (const auto envelope = messages_.probe(message_tag::end, {})) {
        MessagePassing::Request request = messages_.start_receive(envelope->from, message_tag::end, {});
        while (!messages_.test(request)) std::this_thread::yield();  // nothing is in it
        has_ended[envelope->from] = true;
        continue;
      }
      if (std::chrono::steady_clock::now() >= deadline) return false;
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
    return true;
  } catch (const std::exception&) {
    return false;
  }
}

std::uint32_t MpiJob::begin_session(std::size_t num_ranks) {
  const std::lock_guard lock(mutex_);
  if (messages_.rank() != 0) {
    failure_ = "a rank other than 0 has loaded an engine";  // so that the job ends with this process
    throw Error(ErrorCode::invalid_argument, concat("this is rank ", messages_.rank(),
                                                    " of an MPI job, and engines are loaded in rank 0: start the program with "
                                                    "`precast launch`, which runs precast-worker in the others"));
  }
  if (num_ranks != messages_.num_ranks()) {
    throw Error(ErrorCode::invalid_argument,
                concat("the engine has ", num_ranks, num_ranks == 1 ? " rank" : " ranks", ", and the MPI job ",
                       messages_.num_ranks(), ": start it with mpiexec -n ", num_ranks));
  }
  if (has_session_) {
    throw Error(ErrorCode::invalid_argument, "the MPI job has an engine already: delete that one first, or start another job");
  }
  if (!failure_.empty()) {
    throw Error(ErrorCode::rank_failed, concat("the MPI job has failed: ", failure_, "; start it again"));
  }
  has_session_ = true;
  return ++session_;
}

void MpiJob::end_session(const std::string& failure) {
  const std::lock_guard lock(mutex_);
  has_session_ = false;
  failure_ = failure;
}

std::string mpi_library() {
  const char* const path = std::getenv("PRECAST_MPI");
  return path != nullptr ? path : "";
}

void end_mpi_job(const std::string& path) { MpiJob::open(path); }

int run_mpi_worker(const std::string& path) {
  end_with_launcher();
  MpiJob& job = MpiJob::open(path);
  if (job.messages().rank() == 0) {
    throw Error(ErrorCode::invalid_argument, "precast-worker --mpi runs ranks 1, 2, ...; rank 0 is the program that loads the engine");
  }
  try {
    serve_rank(job.messages(), {.num_local_ranks = job.messages().num_local_ranks()});
  } catch (const std::exception& error) {
    // Not an ordinary end, in which this process would wait for the others, and they for it.
    std::fprintf(stderr, "precast-worker: rank %zu: %s\n", job.messages().rank(), error.what());
    job.messages().abort();
    return 2;
  }
  return 0;
}

}  // namespace precast
