#include "runtime/native/src/c_api/values.h"

#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <new>

#include "precast.h"
#include "runtime/native/src/concat.h"
#include "runtime/native/src/error.h"
#include "runtime/native/src/version.h"

namespace precast {

void require(bool condition, const char* what) {
  if (!condition) throw Error(ErrorCode::invalid_argument, what);
}

void require_own_process(pid_t pid) {
  if (pid == getpid()) return;
  throw Error(ErrorCode::forked, concat("this engine belongs to process ", pid, ", and this is its fork ", getpid(),
                                        ": load the engine again in this process"));
}

char* new_string(const std::string& text) {
  char* copy = static_cast<char*>(std::malloc(text.size() + 1));
  if (copy == nullptr) throw std::bad_alloc();
  std::memcpy(copy, text.c_str(), text.size() + 1);
  return copy;
}

}  // namespace precast

uint32_t precast_version(void) { return PRECAST_VERSION; }

const char* precast_version_string(void) { return precast::version(); }

void precast_string_delete(char* string) { std::free(string); }
