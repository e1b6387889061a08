#include "tests/native/check.h"

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string_view>
#include <vector>

namespace precast::test {
namespace {

struct Test {
  const char* name;
  void (*body)();
};

std::vector<Test>& tests() {
  static std::vector<Test> all;  // a function's static: built before the first TEST of any file registers
  return all;
}

bool wanted(std::string_view name, int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    if (name.find(argv[i]) != std::string_view::npos) return true;
  }
  return argc == 1;
}

bool passes(const Test& test) {
  try {
    test.body();
    return true;
  } catch (const Failure& failure) {
    std::printf("FAILED %s\n  %s\n", test.name, failure.what());
  } catch (const std::exception& error) {
    std::printf("FAILED %s\n  unexpected exception: %s\n", test.name, error.what());
  }
  return false;
}

}  // namespace

bool add_test(const char* name, void (*body)()) {
  tests().push_back({name, body});
  return true;
}

void fail(const char* file, int line, const std::string& message) {
  throw Failure(std::string(file) + ":" + std::to_string(line) + ": " + message);
}

int run(int argc, char** argv) {
  ::setenv("PRECAST_AUDIT", "1", 0);  // of every engine that a test loads
  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  int num_run = 0;
  int num_failed = 0;
  for (const Test& test : tests()) {
    if (!wanted(test.name, argc, argv)) continue;
    ++num_run;
    if (!passes(test)) ++num_failed;
  }
  const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
  std::printf("%d native tests passed, %d failed in %.2fs\n", num_run - num_failed, num_failed, seconds);
  if (num_run == 0) std::printf("no test's name contains any of the given words\n");
  return num_failed == 0 && num_run > 0 ? 0 : 1;
}

}  // namespace precast::test

int main(int argc, char** argv) { return precast::test::run(argc, argv); }
