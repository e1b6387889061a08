#include "runtime/native/src/ort_library.h"

#include <dlfcn.h>

#include <charconv>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <mutex>
#include <optional>
#include <system_error>
#include <utility>

#include "runtime/native/src/concat.h"
#include "runtime/native/src/error.h"

namespace precast {
namespace {

constexpr const char* minimum_version = "1.23";
constexpr const char* path_variable = "PRECAST_ONNXRUNTIME";
constexpr const char* file_names[] = {"libonnxruntime.so.1", "libonnxruntime.so"};
constexpr const char* advice = "install onnxruntime 1.23 or newer, or give the path of its libonnxruntime.so";

std::optional<std::pair<int, int>> parse_version(std::string_view text) noexcept {
  const char* const end = text.data() + text.size();
  std::pair<int, int> version;
  const auto major = std::from_chars(text.data(), end, version.first);
  if (major.ec != std::errc() || major.ptr == end || *major.ptr != '.') return std::nullopt;
  if (std::from_chars(major.ptr + 1, end, version.second).ec != std::errc()) return std::nullopt;
  return version;
}

/// The file that holds `address`; empty where the loader does not know.
std::filesystem::path file_of(const void* address) {
  Dl_info info{};
  return ::dladdr(address, &info) != 0 && info.dli_fname != nullptr ? info.dli_fname : "";
}

struct OpenedFile {
  void* handle = nullptr;
  std::string path;
};

/// Opens one file; a null handle: `problem` says why not. Never unloaded: ONNX Runtime has threads of its own.
OpenedFile try_open(const std::string& path, std::string& problem) {
  void* const handle = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
  if (handle == nullptr) problem = ::dlerror();
  return {handle, path};
}

OpenedFile open_named(const std::string& path, std::string_view source) {
  std::string problem;
  OpenedFile file = try_open(path, problem);
  if (file.handle != nullptr) return file;
  throw Error(ErrorCode::not_found,
              concat("cannot open ONNX Runtime at ", quote(path), source, ": ", problem, "; ", advice));
}

OpenedFile find_and_open() {
  static const char marker = 0;
  const std::filesystem::path here = file_of(&marker).parent_path();
  for (const char* name : file_names) {
    std::error_code ignored;
    if (!here.empty() && std::filesystem::exists(here / name, ignored)) {
      return open_named((here / name).string(), " (beside this library)");
    }
  }
  std::string problem;
  for (const char* name : file_names) {
    OpenedFile file = try_open(name, problem);
    if (file.handle != nullptr) return file;
  }
  throw Error(ErrorCode::not_found,
              concat("ONNX Runtime was not found: ", path_variable, " is not set, ", quote(here.string()),
                     " holds no libonnxruntime.so, and the loader says: ", problem, "; ", advice));
}

/// From 1.29 on, ONNX Runtime's own builds for Linux collect usage data unless this variable says otherwise when they are
/// loaded: they keep a database in the home directory, upload it from a thread, and a fork of the process hangs in exit().
void refuse_telemetry() { ::setenv("ORT_DISABLE_TELEMETRY", "1", /*overwrite=*/0); }

OpenedFile open_library(const std::string& path) {
  refuse_telemetry();
  if (!path.empty()) return open_named(path, "");
  const char* const from_environment = std::getenv(path_variable);
  if (from_environment != nullptr && *from_environment != '\0') {
    return open_named(from_environment, concat(" (from ", path_variable, ")"));
  }
  return find_and_open();
}

const ort::ApiBase& api_base_of(const OpenedFile& file) {
  using GetApiBase = const ort::ApiBase* (*)();
  const auto get_api_base = reinterpret_cast<GetApiBase>(::dlsym(file.handle, "OrtGetApiBase"));
  const ort::ApiBase* const base = get_api_base != nullptr ? get_api_base() : nullptr;
  if (base != nullptr) return *base;
  throw Error(ErrorCode::not_found,
              concat(quote(file.path), " is not ONNX Runtime: it has no OrtGetApiBase; ", advice));
}

const ort::Api& api_of(const ort::ApiBase& base, const std::string& version, const std::string& path) {
  const ort::Api* const api = is_at_least(version, minimum_version) ? base.GetApi(ort::api_version) : nullptr;
  if (api != nullptr) return *api;
  throw Error(ErrorCode::onnxruntime, concat("ONNX Runtime ", version, " at ", quote(path), " is too old; ", advice));
}

/// A library writes nothing to stderr. What goes wrong comes as a status, with its text.
void discard_log(void*, ort::LoggingLevel, const char*, const char*, const char*, const char*) {}

/// Activations live in an arena that grows by what is asked for. The default one doubles, and never gives back.
void register_arena(const ort::Api& api, ort::Env& env) {
  const auto memory = ort::make<ort::MemoryInfo>(api, api.ReleaseMemoryInfo, "describe memory", [&](auto** out) {
    return api.CreateCpuMemoryInfo(ort::AllocatorType::arena, ort::MemType::default_memory, out);
  });
  const char* const keys[] = {"arena_extend_strategy"};
  const std::size_t values[] = {1};  // kSameAsRequested
  const auto arena = ort::make<ort::ArenaCfg>(api, api.ReleaseArenaCfg, "describe an arena", [&](auto** out) {
    return api.CreateArenaCfgV2(keys, values, 1, out);
  });
  ort::check(api, api.CreateAndRegisterAllocator(&env, memory.get(), arena.get()), "create an arena");
}

ort::Handle<ort::Env> create_env(const ort::Api& api) {
  auto env = ort::make<ort::Env>(api, api.ReleaseEnv, "start", [&](auto** out) {
    return api.CreateEnvWithCustomLogger(&discard_log, nullptr, ort::LoggingLevel::fatal, "precast", out);
  });
  register_arena(api, *env);
  return env;
}

}  // namespace

bool is_at_least(std::string_view version, std::string_view minimum) noexcept {
  const auto found = parse_version(version);
  const auto wanted = parse_version(minimum);
  return found && wanted && *found >= *wanted;
}

OrtLibrary::OrtLibrary(const ort::ApiBase& base, std::string path)
    : path_(std::move(path)),
      version_(base.GetVersionString()),
      api_(api_of(base, version_, path_)),
      env_(create_env(api_)) {}

std::shared_ptr<const OrtLibrary> OrtLibrary::open(const std::string& path) {
  // By address of the library's entry: two names of one file are one library, and its environment must be made once.
  static std::mutex mutex;
  static std::map<const ort::ApiBase*, std::weak_ptr<const OrtLibrary>> opened;
  const OpenedFile file = open_library(path);
  const ort::ApiBase& base = api_base_of(file);
  const std::lock_guard lock(mutex);
  std::weak_ptr<const OrtLibrary>& entry = opened[&base];
  if (auto library = entry.lock()) return library;
  const std::string real_path = file_of(&base).string();
  std::shared_ptr<const OrtLibrary> library(new OrtLibrary(base, real_path.empty() ? file.path : real_path));
  entry = library;
  return library;
}

}  // namespace precast
