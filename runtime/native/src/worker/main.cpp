// precast-worker: the process of a rank other than 0. precast starts it, or mpiexec does (`precast launch`); it is of no use
// by hand.
#include <cstdio>
#include <exception>
#include <string>
#include <vector>

#include "runtime/native/src/ranks/local/local_worker.h"
#include "runtime/native/src/ranks/messages/mpi_job.h"

int main(int argc, char** argv) {
  try {
    const std::vector<std::string> arguments(argv + 1, argv + argc);
    if (arguments.size() == 2 && arguments[0] == "--mpi") return precast::run_mpi_worker(arguments[1]);
    if (arguments.size() == 3 && arguments[0] == "--mpi-end") {
      precast::end_mpi_job(arguments[1]);
      return std::stoi(arguments[2]);
    }
    return precast::run_local_worker(precast::WorkerArguments::from_strings(arguments));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "precast-worker: %s\n", error.what());
    return 2;
  }
}
