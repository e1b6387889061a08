#pragma once

#include <sys/types.h>

#include <string>

namespace precast {

/// Throws Error(invalid_argument) with the text `what` unless `condition` holds.
void require(bool condition, const char* what);

/// Throws Error(forked) unless this is process `pid`.
void require_own_process(pid_t pid);

/// A copy for the caller to give back to precast_string_delete.
char* new_string(const std::string& text);

}  // namespace precast
