#pragma once

#include <sstream>
#include <string>

namespace precast {

/// The arguments printed one behind another: error messages are built with it.
template <typename... Parts>
std::string concat(const Parts&... parts) {
  std::ostringstream out;
  out.imbue(std::locale::classic());  // a host program's locale must not put thousands separators into messages
  (out << ... << parts);
  return out.str();
}

}  // namespace precast
