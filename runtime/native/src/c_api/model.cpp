#include "runtime/native/src/model.h"

#include <sys/types.h>
#include <unistd.h>

#include <memory>

#include "precast.h"
#include "runtime/native/src/c_api/error.h"
#include "runtime/native/src/c_api/options.h"
#include "runtime/native/src/c_api/values.h"
#include "runtime/native/src/engine_loader.h"

using precast::guarded;
using precast::require;

struct precast_model {
  precast::LoadedModel loaded;
  pid_t pid = getpid();
};

precast_error_t* precast_model_new(const char* path, const precast_engine_options_t* options, precast_model_t** model) {
  return guarded([&] {
    require(path != nullptr, "path is NULL");
    require(model != nullptr, "model is NULL");
    auto handle = std::make_unique<precast_model>();
    handle->loaded = precast::load_model(path, precast::to_options(options));
    *model = handle.release();
  });
}

void precast_model_delete(precast_model_t* model) {
  if (model == nullptr) return;
  // ONNX Runtime's threads do not exist in a fork: leave what belongs to them alone.
  if (model->pid != getpid()) static_cast<void>(model->loaded.model.release());
  delete model;
}

precast_error_t* precast_model_info(const precast_model_t* model, char** json) {
  return guarded([&] {
    require(model != nullptr && json != nullptr, "model or json is NULL");
    *json = precast::new_string(model->loaded.info_json());
  });
}

precast_error_t* precast_model_logits(precast_model_t* model, const int32_t* token_ids, size_t num_tokens, float* logits,
                                      size_t num_logits) {
  return guarded([&] {
    require(model != nullptr, "model is NULL");
    precast::require_own_process(model->pid);
    require(token_ids != nullptr && logits != nullptr, "token_ids or logits is NULL");
    model->loaded.model->compute_logits({token_ids, num_tokens}, {logits, num_logits});
  });
}
