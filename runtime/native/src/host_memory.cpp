#include "runtime/native/src/host_memory.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <optional>
#include <string>

namespace precast {
namespace {

/// The number a control-group file holds; nothing where there is no such file, or it says "max".
std::optional<std::uint64_t> read_number(const char* path) {
  std::ifstream file(path);
  std::uint64_t value = 0;
  if (file >> value) return value;
  return std::nullopt;
}

std::uint64_t system_available_bytes() {
  std::ifstream file("/proc/meminfo");
  std::string key;
  std::uint64_t kibibytes = 0;
  std::string unit;
  while (file >> key >> kibibytes) {
    if (key == "MemAvailable:") return kibibytes * 1024;
    std::getline(file, unit);
  }
  return std::numeric_limits<std::uint64_t>::max();  // no /proc: only the control group's limit is known, if any
}

std::uint64_t group_available_bytes() {
  const auto limit = read_number("/sys/fs/cgroup/memory.max");
  const auto used = read_number("/sys/fs/cgroup/memory.current");
  if (!limit || !used) return std::numeric_limits<std::uint64_t>::max();
  return *limit - std::min(*limit, *used);
}

}  // namespace

std::uint64_t available_memory_bytes() { return std::min(system_available_bytes(), group_available_bytes()); }

}  // namespace precast
