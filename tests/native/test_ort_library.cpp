#include "runtime/native/src/ort_library.h"

#include <cstdlib>

#include "tests/native/check.h"
#include "tests/native/engine_files.h"

namespace precast::test {
namespace {

/// An environment variable for a scope.
class EnvironmentVariable {
 public:
  EnvironmentVariable(const char* name, const char* value) : name_(name) {
    const char* const before = std::getenv(name);
    if (before != nullptr) before_ = before;
    ::setenv(name, value, 1);
  }
  ~EnvironmentVariable() {
    if (before_.empty()) {
      ::unsetenv(name_);
    } else {
      ::setenv(name_, before_.c_str(), 1);
    }
  }

 private:
  const char* name_;
  std::string before_;
};

}  // namespace

TEST("versions compare by number") {
  CHECK(is_at_least("1.23.0", "1.23"));
  CHECK(is_at_least("1.31.1", "1.23"));
  CHECK(is_at_least("2.0", "1.23"));
  CHECK(is_at_least("1.100.0-dev", "1.23"));
  CHECK(!is_at_least("1.9.2", "1.23"));
  CHECK(!is_at_least("1.22.9", "1.23"));
  CHECK(!is_at_least("0.99", "1.23"));
  CHECK(!is_at_least("", "1.23"));
  CHECK(!is_at_least("1", "1.23"));
  CHECK(!is_at_least("one.two", "1.23"));
}

TEST("a path that holds no ONNX Runtime is named, and where it came from") {
  const std::string wanted = refusal([] { OrtLibrary::open("/no/such/libonnxruntime.so"); });
  CHECK(starts_with(wanted, "cannot open ONNX Runtime at \"/no/such/libonnxruntime.so\": "));
  const EnvironmentVariable variable("PRECAST_ONNXRUNTIME", "/none");
  const std::string found = refusal([] { OrtLibrary::open(""); });
  CHECK(starts_with(found, "cannot open ONNX Runtime at \"/none\" (from PRECAST_ONNXRUNTIME): "));
  CHECK_EQ(refusal_code([] { OrtLibrary::open(""); }), static_cast<int>(ErrorCode::not_found));
}

TEST("a library that is not ONNX Runtime is refused") {
  const std::string text = refusal([] { OrtLibrary::open("libm.so.6"); });
  CHECK(starts_with(text, "\"libm.so.6\" is not ONNX Runtime: it has no OrtGetApiBase"));
}

}  // namespace precast::test
