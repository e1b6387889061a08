#include "runtime/native/src/ranks/worker.h"

#include <exception>

#include "runtime/native/src/concat.h"
#include "runtime/native/src/engine_loader.h"
#include "runtime/native/src/engine_manifest.h"
#include "runtime/native/src/ranks/sign_of_life.h"

namespace precast {

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
