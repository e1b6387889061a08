#pragma once

#include <exception>
#include <string>

namespace precast::test {

// What `action` says when it throws; "accepted" where it does not.
template <typename Action>
std::string refusal(Action&& action) {
  try {
    action();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "accepted";
}

}  // namespace precast::test
