#include "tests/native/check.h"

#include <algorithm>
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

// What the command line asks for: --part=K/N, K from 1 to N: every N-th test; and parts of names, one of which a test has.
struct Wanted {
  int part = 1;
  int num_parts = 1;
  std::vector<std::string_view> names;

  bool has(int number, std::string_view name) const {
    if (number % num_parts != part - 1) return false;
    return names.empty() || std::ranges::any_of(names, [&](std::string_view known) { return name.find(known) != std::string_view::npos; });
  }
};

// False where `argument` begins with a dash and is no --part.
bool read_argument(const char* argument, Wanted& wanted) {
  if (argument[0] != '-') {
    wanted.names.push_back(argument);
    return true;
  }
  int length = 0;
  return std::sscanf(argument, "--part=%d/%d%n", &wanted.part, &wanted.num_parts, &length) == 2 &&
         argument[length] == '\0' && wanted.part >= 1 && wanted.part <= wanted.num_parts;
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
  std::fflush(stdout);  // or a process that a later test forks says it again
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
  Wanted wanted;
  for (int i = 1; i < argc; ++i) {
    if (read_argument(argv[i], wanted)) continue;
    std::fprintf(stderr, "%s is no option; give --part=K/N with K from 1 to N, and parts of tests' names\n", argv[i]);
    return 2;
  }
  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  int number = 0;
  int num_run = 0;
  int num_failed = 0;
  for (const Test& test : tests()) {
    if (!wanted.has(number++, test.name)) continue;
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
