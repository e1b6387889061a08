#include "runtime/native/src/ranks/ranked_session.h"

#include <bit>
#include <exception>
#include <new>
#include <utility>

#include "runtime/native/src/concat.h"
#include "runtime/native/src/error.h"

namespace precast {

std::unique_ptr<RankedSession> RankedSession::load(const EngineManifest& manifest, const OrtSessionOptions& rank0,
                                                   std::unique_ptr<LeaderLink> link) {
  return std::unique_ptr<RankedSession>(new RankedSession(manifest, rank0, std::move(link)));
}

RankedSession::RankedSession(const EngineManifest& manifest, const OrtSessionOptions& rank0,
                             std::unique_ptr<LeaderLink> link)
    : num_stages_(static_cast<std::size_t>(manifest.mapping.pipeline_parallel_size)),
      vocab_size_(static_cast<std::size_t>(manifest.model.vocab_size)),
      link_(std::move(link)),
      logit_rows_(std::bit_ceil(num_stages_)) {
  OrtSessionOptions options = rank0;
  options.rank = 0;
  options.communicator = &link_->communicator();
  rank0_ = OrtSession::load(manifest, options);
  try {
    link_->wait_until_ready();
  } catch (const CommunicatorError&) {
    throw_failure();
  }
}

RankedSession::~RankedSession() = default;

template <typename Work>
auto RankedSession::guarded(Work&& work) {
  try {
    return std::forward<Work>(work)();
  } catch (const Error&) {
    if (link_->has_failed()) throw_failure();  // an op that met it wraps it into a sentence of ONNX Runtime's
    link_->fail("rank 0 could not compute its part of a step");  // which the others wait for
    throw;
  } catch (const std::bad_alloc&) {
    link_->fail("rank 0 has no memory left for its part of a step");
    throw_failure();
  } catch (const CommunicatorError&) {
    throw_failure();
  } catch (const std::exception& error) {
    link_->fail(concat("rank 0: ", error.what()));
    throw;
  }
}

void RankedSession::enqueue(const StepBatch& batch) {
  if (link_->has_failed()) throw_failure();
  guarded([&] {
    const std::uint32_t number = num_published_ + 1;
    link_->publish(number, batch);
    num_published_ = number;
    logit_rows_[number % logit_rows_.size()] = batch.logit_rows.size();
    rank0_->enqueue(batch);
    // With several stages rank 0's part is done now, and the next step may follow it through the pipeline.
    if (num_stages_ > 1) rank0_->collect(batch.id);
  });
}

StepResult RankedSession::collect(std::uint64_t step) {
  if (link_->has_failed()) throw_failure();
  return guarded([&]() -> StepResult {
    const std::uint32_t number = ++num_collected_;
    if (num_stages_ == 1) return rank0_->collect(step);
    const std::size_t count = logit_rows_[number % logit_rows_.size()] * vocab_size_;
    return {.logits = link_->wait_for_logits(number, count), .token_ids = {}};
  });
}

void RankedSession::throw_failure() const { throw Error(ErrorCode::rank_failed, link_->failure()); }

}  // namespace precast
