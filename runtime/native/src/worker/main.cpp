// precast-worker: the process of a rank other than 0. precast starts it; it is of no use by hand.
#include <cstdio>
#include <exception>
#include <string>
#include <vector>

#include "runtime/native/src/ranks/local/local_worker.h"

int main(int argc, char** argv) {
  try {
    return precast::run_local_worker(precast::WorkerArguments::from_strings(std::vector<std::string>(argv + 1, argv + argc)));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "precast-worker: %s\n", error.what());
    return 2;
  }
}
