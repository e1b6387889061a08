#include "runtime/native/src/ranks/rank_options.h"

#include <sched.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <span>
#include <thread>

#include "plugins/collectives/cpu/shared_memory_communicator.h"
#include "runtime/native/src/crc32.h"
#include "runtime/native/src/version.h"

namespace precast {

std::uint32_t num_processors() {
  cpu_set_t processors;
  const bool is_known = ::sched_getaffinity(0, sizeof processors, &processors) == 0;
  return std::max(1U, is_known ? static_cast<std::uint32_t>(CPU_COUNT(&processors)) : std::thread::hardware_concurrency());
}

unsigned spins_of(std::size_t num_ranks, std::uint32_t threads_of_each) {
  return num_ranks * threads_of_each <= num_processors() ? WaitOptions{}.spins : 0;
}

std::uint64_t build_id(const std::string& engine_dir) {
  std::ifstream file(engine_dir + "/engine.json", std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  const std::string precast_version(version());
  const auto bytes = [](const std::string& from) { return std::as_bytes(std::span(from)); };
  return std::uint64_t{crc32(bytes(text))} << 32 | crc32(bytes(precast_version));
}

}  // namespace precast
