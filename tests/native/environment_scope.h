// An environment variable for the length of a scope.
#pragma once

#include <cstdlib>
#include <string>

namespace precast::test {

/// Sets the variable, and puts back what was there.
class EnvironmentScope {
 public:
  EnvironmentScope(const char* name, const char* value) : name_(name) {
    const char* const before = std::getenv(name);
    had_value_ = before != nullptr;
    if (had_value_) before_ = before;
    setenv(name, value, 1);
  }
  ~EnvironmentScope() { had_value_ ? setenv(name_, before_.c_str(), 1) : unsetenv(name_); }
  EnvironmentScope(const EnvironmentScope&) = delete;
  EnvironmentScope& operator=(const EnvironmentScope&) = delete;

 private:
  const char* const name_;
  bool had_value_;
  std::string before_;
};

}  // namespace precast::test
