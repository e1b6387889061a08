// RegisterCustomOps, the function that ONNX Runtime looks for in a library of custom ops. With it other programs can run
// an engine's graph, and Python's onnxruntime can test an op:
//
//     options.register_custom_ops_library("libprecast.so.0")
//
// The kernel level comes from the environment variable PRECAST_KERNEL_LEVEL, read at each registration.
#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>

#include "precast.h"
#include "runtime/native/src/error.h"
#include "runtime/native/src/kernel_level.h"
#include "runtime/native/src/ort_ops/ort_op.h"

namespace precast {
namespace {

struct RegisteredOps {
  KernelState state;
  std::unique_ptr<OrtOps> ops;
};

/// The ops of one kernel level. They stay until the process ends: nobody tells when the last session is gone.
const OrtOps& ops_of(const ort::Api& api, KernelLevel level) {
  static std::mutex mutex;
  static auto& all = *new std::map<std::pair<const ort::Api*, KernelLevel>, RegisteredOps>();
  const std::lock_guard lock(mutex);
  RegisteredOps& registered = all[{&api, level}];
  if (registered.ops == nullptr) {
    registered.state.level = level;
    registered.state.num_threads = std::max(1U, std::thread::hardware_concurrency());
    registered.ops = std::make_unique<OrtOps>(api, registered.state);
  }
  return *registered.ops;
}

}  // namespace
}  // namespace precast

extern "C" PRECAST_API precast::ort::Status* RegisterCustomOps(precast::ort::SessionOptions* options,
                                                               const precast::ort::ApiBase* api_base) {
  using namespace precast;
  // The oldest form of the table is enough to say what is wrong.
  const auto fail = [&](const char* message) {
    return api_base->GetApi(1)->CreateStatus(ort::ErrorCode::fail, message);
  };
  const ort::Api* const api = api_base->GetApi(ort::api_version);
  if (api == nullptr) return fail("precast needs ONNX Runtime 1.23 or newer");
  try {
    ops_of(*api, choose_kernel_level("")).add_to(*options);
    return nullptr;
  } catch (const std::exception& error) {
    return fail(error.what());
  }
}
