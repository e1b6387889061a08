#include <string>

#include "precast.h"
#include "runtime/native/src/version.h"
#include "tests/native/check.h"

TEST("version: precast.h says the same as precast/version.py") {
  const std::string header = std::to_string(PRECAST_VERSION_MAJOR) + "." + std::to_string(PRECAST_VERSION_MINOR) +
                             "." + std::to_string(PRECAST_VERSION_PATCH);
  // precast/version.py may add a suffix such as ".dev1"; the header holds the three numbers.
  CHECK_EQ(std::string(precast::version()).substr(0, header.size()), header);
}
