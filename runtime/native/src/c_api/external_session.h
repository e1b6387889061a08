#pragma once

#include <functional>

#include "precast.h"
#include "runtime/native/src/session_factory.h"

namespace precast {

/// Makes sessions that the caller's functions compute; empty for NULL. Throws Error(invalid_argument) where a function is
/// missing, or the table has another version. What it returns throws what `create` reports, and Error(invalid_argument) for
/// properties that cannot be.
SessionFactory external_session_factory(const precast_session_table_t* table);

}  // namespace precast
