#pragma once

namespace precast {

/// Version of this library, as written in precast/version.py, e.g. "0.1.0". Static storage.
const char* version() noexcept;

}  // namespace precast
