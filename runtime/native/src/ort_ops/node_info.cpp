#include "runtime/native/src/ort_ops/node_info.h"

#include <cmath>

#include "runtime/native/src/ort_handle.h"

namespace precast {
namespace {

/// A string that `read(char* out, size_t* size) -> Status*` gives: first its size with the final NUL, then itself.
template <typename Read>
std::string read_string(const ort::Api& api, const std::string& task, Read&& read) {
  std::size_t size = 0;
  ort::check(api, read(nullptr, &size), task);
  std::string value(size, '\0');
  ort::check(api, read(value.data(), &size), task);
  while (!value.empty() && value.back() == '\0') value.pop_back();
  return value;
}

}  // namespace

NodeInfo::NodeInfo(const ort::Api& api, const ort::KernelInfo& info, const char* op_name) : api_(api), info_(info) {
  const std::string name = read_string(api, "name a node", [&](char* out, std::size_t* size) {
    return api.KernelInfo_GetNodeName(&info, out, size);
  });
  description_ = concat("node ", quote(name), " (ai.precast.", op_name, ")");
}

bool NodeInfo::has_input(std::size_t index) const {
  std::size_t count = 0;
  ort::check(api_, api_.KernelInfo_GetInputCount(&info_, &count), concat("count the inputs of ", description_));
  return index < count && !input_name(index).empty();
}

std::string NodeInfo::input_name(std::size_t index) const {
  return read_string(api_, concat("name input ", index, " of ", description_), [&](char* out, std::size_t* size) {
    return api_.KernelInfo_GetInputName(&info_, index, out, size);
  });
}

std::size_t NodeInfo::integer(const char* attribute, std::int64_t minimum, std::int64_t maximum) const {
  std::int64_t value = 0;
  ort::check(api_, api_.KernelInfoGetAttribute_int64(&info_, attribute, &value),
             concat("read the integer ", attribute, " of ", description_));
  if (value < minimum || value > maximum) {
    refuse(attribute, " is ", value, "; it must be in [", minimum, ", ", maximum, "]");
  }
  return static_cast<std::size_t>(value);
}

float NodeInfo::finite_number(const char* attribute) const {
  float value = 0;
  ort::check(api_, api_.KernelInfoGetAttribute_float(&info_, attribute, &value),
             concat("read the number ", attribute, " of ", description_));
  if (!std::isfinite(value)) refuse(attribute, " is ", value, "; it must be finite");
  return value;
}

std::string NodeInfo::text(const char* attribute) const {
  return read_string(api_, concat("read the string ", attribute, " of ", description_),
                     [&](char* out, std::size_t* size) {
                       return api_.KernelInfoGetAttribute_string(&info_, attribute, out, size);
                     });
}

}  // namespace precast
