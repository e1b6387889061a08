#include "runtime/native/src/version.h"

namespace precast {

const char* version() noexcept { return PRECAST_VERSION_TEXT; }

}  // namespace precast
