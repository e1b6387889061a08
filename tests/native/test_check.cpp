#include <stdexcept>
#include <string>

#include "tests/native/check.h"

using precast::test::Failure;

TEST("check: CHECK_EQ names the file, the expressions and both values") {
  std::string message;
  try {
    CHECK_EQ(1 + 1, 3);
  } catch (const Failure& failure) {
    message = failure.what();
  }
  CHECK(message.find("test_check.cpp:") != std::string::npos);
  CHECK(message.find("1 + 1, 3") != std::string::npos);
  CHECK(message.find("2 != 3") != std::string::npos);
}

TEST("check: CHECK_THROWS fails where nothing is thrown") {
  CHECK_THROWS(throw std::invalid_argument("planted"));
  const auto throws_nothing = [] { CHECK_THROWS(1); };
  CHECK_THROWS(throws_nothing());
}
