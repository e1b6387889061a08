#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "plugins/collectives/cpu/communicator.h"
#include "plugins/cpu/kernel.h"
#include "runtime/native/src/engine_manifest.h"
#include "runtime/native/src/session.h"

namespace precast {

/// How to open an engine. 0 and "" are the defaults.
struct OrtSessionOptions {
  std::string onnxruntime_path{};  ///< "": PRECAST_ONNXRUNTIME, else beside libprecast, else the loader's search path
  std::uint32_t num_threads = 0;   ///< 0: the processors this process may run on
  std::string kernel_level{};      ///< "": PRECAST_KERNEL_LEVEL, else the best this processor has
  std::int32_t num_blocks = 0;     ///< of every KV pool; >= 1
  std::size_t rank = 0;            ///< whose graph and weights
  Communicator* communicator = nullptr;  ///< to the other ranks, which outlives the session; null: there are none
};

/// Computes steps of one rank with ONNX Runtime on the CPU. Only tensor rank 0 of the last stage has logits.
///
/// Weights and KV pools are given to ONNX Runtime where they lie and never copied; so are the arrays of a StepBatch.
/// One step at a time: enqueue keeps the pointer, collect computes.
class OrtSession final : public Session {
 public:
  /// Opens ONNX Runtime, maps the weights of the rank, reserves the KV pools and loads the graph. Throws Error.
  static std::unique_ptr<OrtSession> load(const EngineManifest& manifest, const OrtSessionOptions& options);

  ~OrtSession() override;

  std::size_t max_in_flight() const noexcept override { return 1; }
  void enqueue(const StepBatch& batch) override;
  StepResult collect(std::uint64_t step) override;

  std::uint32_t num_threads() const noexcept;
  KernelLevel kernel_level() const noexcept;
  const std::string& onnxruntime_version() const noexcept;  ///< e.g. "1.23.2"
  std::uint64_t weights_bytes() const noexcept;             ///< size of weights.bin

  /// How much of weights.bin this process sees through huge pages now. Grows as pages are first touched.
  std::uint64_t weights_huge_page_bytes() const;

 private:
  class Impl;
  explicit OrtSession(std::unique_ptr<Impl> impl) noexcept;

  std::unique_ptr<Impl> impl_;
};

}  // namespace precast
