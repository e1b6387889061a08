#include "tests/native/failing_memory.h"

#include <dlfcn.h>

#include <new>

namespace precast::test {
namespace {

struct Plan {
  bool is_armed = false;
  bool has_failed = false;
  Failing failing = Failing::once;
  std::size_t num_left = 0;
};

constinit thread_local Plan plan;

bool is_to_fail() noexcept {
  if (!plan.is_armed) return false;
  if (plan.num_left > 0) {
    --plan.num_left;
    return false;
  }
  plan.is_armed = plan.failing == Failing::for_good;
  plan.has_failed = true;
  return true;
}

}  // namespace

void fail_allocations(std::size_t num_left, Failing failing) noexcept {
  plan = {.is_armed = true, .has_failed = false, .failing = failing, .num_left = num_left};
}

bool stop_failing() noexcept {
  plan.is_armed = false;
  return plan.has_failed;
}

}  // namespace precast::test

/// new[] and the other forms come here too, but under AddressSanitizer, whose forms are all its own. The operator that this one
/// hides does the work: then every form of delete still fits what it is given.
void* operator new(std::size_t size) {
  using New = void* (*)(std::size_t);
  static const New hidden = reinterpret_cast<New>(dlsym(RTLD_NEXT, "_Znwm"));
  if (precast::test::is_to_fail()) throw std::bad_alloc();
  return hidden(size);
}
