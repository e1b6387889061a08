// Command lines of the benchmarks: "--name value" pairs, and nothing else.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <optional>
#include <string_view>

#include "plugins/cpu/kernel.h"

namespace precast::bench {

/// Ends the program: a figure for other work than was asked for is worse than none.
[[noreturn]] inline void refuse(const char* argument) {
  std::fprintf(stderr, "%s is no option, or not with this value; the top of main.cpp lists them\n", argument);
  std::exit(2);
}

/// Gives each pair to `take`, which says whether it knows the name and accepts the value.
template <typename Take>
void parse_arguments(int argc, char** argv, Take&& take) {
  for (int i = 1; i < argc; i += 2) {
    if (i + 1 == argc || !take(std::string_view(argv[i]), argv[i + 1])) refuse(argv[i]);
  }
}

/// A level that this machine has.
inline std::optional<KernelLevel> parse_usable_level(const char* value) {
  const std::optional<KernelLevel> level = parse_kernel_level(value);
  return level && supports(*level) ? level : std::nullopt;
}

inline bool parse_number(const char* value, std::size_t& number) {
  char* end = nullptr;
  number = std::strtoull(value, &end, 10);
  return *value != '\0' && *end == '\0';
}

}  // namespace precast::bench
