#include "runtime/native/src/ranks/worker.h"

#include <chrono>
#include <exception>
#include <stop_token>
#include <thread>

#include "runtime/native/src/concat.h"
#include "runtime/native/src/engine_loader.h"
#include "runtime/native/src/engine_manifest.h"

namespace precast {
namespace {

constexpr std::chrono::milliseconds sign_interval{50};

class SignOfLife {
 public:
  explicit SignOfLife(Communicator& communicator)
      : thread_([&communicator](const std::stop_token& stop) {
          for (; !stop.stop_requested(); std::this_thread::sleep_for(sign_interval)) communicator.heartbeat();
        }) {}

 private:
  std::jthread thread_;
};

}  // namespace

std::unique_ptr<OrtSession> load_rank(const std::string& engine_dir, const OrtSessionOptions& options) {
  const SignOfLife lives(*options.communicator);
  return OrtSession::load(read_manifest(engine_dir, runtime_support()), options);
}

std::string describe_loaded(const OrtSession& session) {
  return concat("loaded ", session.weights_bytes(), " bytes of weights; ", session.num_threads(), " threads, kernels ",
                name(session.kernel_level()));
}

void run_steps(OrtSession& session, std::size_t rank, WorkerLink& link) {
  try {
    StepBatch batch;
    while (link.next_step(batch)) {
      session.enqueue(batch);
      link.report_done(session.collect(batch.id).logits);
    }
  } catch (const std::exception& error) {
    link.fail(concat("rank ", rank, ": ", error.what()));
  }
}

}  // namespace precast
