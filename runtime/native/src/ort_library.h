#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "runtime/native/src/ort_abi.h"
#include "runtime/native/src/ort_handle.h"

namespace precast {

/// ONNX Runtime's shared library, opened, with the one environment that all sessions of this process share.
/// Immutable, so safe for any number of threads.
class OrtLibrary {
 public:
  /// Opens the library, or returns it where this process has it open. `path`, where it is "", is looked for in this order:
  ///
  ///     1. the environment variable PRECAST_ONNXRUNTIME
  ///     2. libonnxruntime.so.1 or libonnxruntime.so in the directory of this library
  ///     3. the same names on the loader's search path
  ///
  /// Throws Error: not_found, or onnxruntime where it is older than 1.23.
  static std::shared_ptr<const OrtLibrary> open(const std::string& path);

  OrtLibrary(const OrtLibrary&) = delete;
  OrtLibrary& operator=(const OrtLibrary&) = delete;

  const ort::Api& api() const noexcept { return api_; }
  const std::string& version() const noexcept { return version_; }  ///< e.g. "1.23.2"
  const std::string& path() const noexcept { return path_; }        ///< of the file
  const ort::Env& env() const noexcept { return *env_; }

 private:
  OrtLibrary(const ort::ApiBase& base, std::string path);

  std::string path_;
  std::string version_;
  const ort::Api& api_;
  ort::Handle<ort::Env> env_;
};

/// Whether release `version` ("1.31.1") is `minimum` ("1.23") or a later one. Compares major and minor number; text that
/// does not start with two numbers is later than nothing.
bool is_at_least(std::string_view version, std::string_view minimum) noexcept;

}  // namespace precast
