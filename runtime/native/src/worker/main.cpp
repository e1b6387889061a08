// precast-worker: the process of a rank other than 0. precast starts it, or mpiexec does (`precast launch`); it is of no use
// by hand.
#include <unistd.h>

#include <charconv>
#include <csignal>
#include <cstdio>
#include <exception>
#include <stdexcept>
#include <string>
#include <vector>

#include "runtime/native/src/ranks/local/local_worker.h"
#include "runtime/native/src/ranks/messages/mpi_job.h"

namespace {

int parse_status(const std::string& text) {
  int status = 0;
  const auto parsed = std::from_chars(text.data(), text.data() + text.size(), status);
  if (parsed.ec != std::errc() || parsed.ptr != text.data() + text.size()) {
    throw std::invalid_argument("\"" + text + "\" is no exit status");
  }
  return status;
}

int run(const std::vector<std::string>& arguments) {
  if (arguments.size() == 2 && arguments[0] == "--mpi") return precast::run_mpi_worker(arguments[1]);
  if (arguments.size() == 3 && arguments[0] == "--mpi-end") {
    const int status = parse_status(arguments[2]);
    precast::end_mpi_job(arguments[1]);
    return status;
  }
  return precast::run_local_worker(precast::WorkerArguments::from_strings(arguments));
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  try {
    return run(arguments);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "precast-worker: %s\n", error.what());
    // A launcher takes any status for an ordinary end as long as MPI has not started, and the other ranks would wait for this
    // one to start it. A process that is killed ends the job.
    if (!arguments.empty() && arguments[0].starts_with("--mpi")) ::kill(::getpid(), SIGKILL);
    return 2;
  }
}
