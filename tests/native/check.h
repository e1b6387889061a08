// The C++ tests' whole framework: registration, checks that print both values, and a main (check.cpp).
//
//   TEST("a block pool hands out distinct blocks") {
//     CHECK(pool.num_free() > 0);
//     CHECK_EQ(pool.num_free(), 3);
//     CHECK_THROWS(pool.release(99));
//   }
//
// A failed CHECK ends its test, and the program exits with 1 after all tests have run.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace precast::test {

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Adds a test to the list that main runs. Called by TEST before main starts.
bool add_test(const char* name, void (*body)());

/// Ends the running test as failed.
[[noreturn]] void fail(const char* file, int line, const std::string& message);

template <typename T>
std::string show(const T& value) {
  std::ostringstream out;
  if constexpr (requires { out << value; }) {
    out.precision(9);
    out << std::boolalpha << value;
  } else {
    out << "(a value without operator<<)";
  }
  return out.str();
}

template <typename A, typename B>
void check_equal(const char* file, int line, const char* text, const A& a, const B& b) {
  if (!(a == b)) fail(file, line, std::string("CHECK_EQ(") + text + "): " + show(a) + " != " + show(b));
}

}  // namespace precast::test

#define PRECAST_TEST_JOIN_(a, b) a##b
#define PRECAST_TEST_JOIN(a, b) PRECAST_TEST_JOIN_(a, b)
#define PRECAST_TEST_NAMED(id, name)                                                                        \
  static void PRECAST_TEST_JOIN(test_body_, id)();                                                          \
  [[maybe_unused]] static const bool PRECAST_TEST_JOIN(test_added_, id) =                                   \
      ::precast::test::add_test(name, &PRECAST_TEST_JOIN(test_body_, id));                                  \
  static void PRECAST_TEST_JOIN(test_body_, id)()

#define TEST(name) PRECAST_TEST_NAMED(__COUNTER__, name)

#define CHECK(condition)                                                                                    \
  do {                                                                                                      \
    if (!(condition)) ::precast::test::fail(__FILE__, __LINE__, "CHECK(" #condition ")");                   \
  } while (false)

#define CHECK_EQ(a, b) ::precast::test::check_equal(__FILE__, __LINE__, #a ", " #b, (a), (b))

#define CHECK_THROWS(expression)                                                                            \
  do {                                                                                                      \
    bool precast_test_threw = false;                                                                        \
    try {                                                                                                   \
      static_cast<void>(expression);                                                                        \
    } catch (const std::exception&) {                                                                       \
      precast_test_threw = true;                                                                            \
    }                                                                                                       \
    if (!precast_test_threw) ::precast::test::fail(__FILE__, __LINE__, "no exception from " #expression);   \
  } while (false)
