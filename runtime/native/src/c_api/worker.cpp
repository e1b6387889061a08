// precast.h in terms of the processes of ranks.
#include <cstdint>
#include <string>
#include <vector>

#include "runtime/native/src/c_api/error.h"
#include "runtime/native/src/c_api/external_session.h"
#include "runtime/native/src/c_api/values.h"
#include "runtime/native/src/ranks/device/device_worker.h"

using precast::require;

precast_error_t* precast_worker_run(const char* const* arguments, size_t num_arguments,
                                    const precast_session_table_t* session, int32_t* exit_status) {
  return precast::guarded([&] {
    require(session != nullptr, "session is NULL");
    require(exit_status != nullptr, "exit_status is NULL");
    require(arguments != nullptr || num_arguments == 0, "arguments is NULL");
    const std::vector<std::string> texts(arguments, arguments + num_arguments);
    const auto worker = precast::WorkerArguments::from_strings(texts);
    *exit_status = precast::run_device_worker(worker, precast::external_session_factory(session));
  });
}
