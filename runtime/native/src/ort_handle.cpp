#include "runtime/native/src/ort_handle.h"

#include "runtime/native/src/concat.h"
#include "runtime/native/src/error.h"

namespace precast::ort {

void check(const Api& api, Status* status, std::string_view task) {
  if (status == nullptr) return;
  const Handle<Status> owned(status, api.ReleaseStatus);
  throw Error(precast::ErrorCode::onnxruntime, concat("ONNX Runtime cannot ", task, ": ", api.GetErrorMessage(status)));
}

}  // namespace precast::ort
