#include "runtime/native/src/engine_manifest.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <limits>
#include <utility>

#include "runtime/native/src/concat.h"
#include "runtime/native/src/error.h"
#include "runtime/native/src/json_cursor.h"
#include "runtime/native/src/mapped_file.h"
#include "runtime/native/src/version.h"

namespace precast {
namespace {

constexpr std::int64_t max_int32 = std::numeric_limits<std::int32_t>::max();
constexpr std::int64_t max_int64 = std::numeric_limits<std::int64_t>::max();

template <typename... Parts>
[[noreturn]] void unsupported(const std::string& source, const Parts&... complaint) {
  throw Error(ErrorCode::unsupported_engine, concat(source, ": ", complaint...));
}

std::string join(const std::vector<std::string>& texts) {
  std::string result;
  for (const std::string& text : texts) result += (result.empty() ? "" : ", ") + text;
  return result;
}

// --- readers of one kind of value ---

std::vector<std::string> name_texts(const JsonCursor& list) {
  std::vector<std::string> names;
  for (const JsonCursor& element : list.elements()) names.push_back(element.printable_name());
  return names;
}

std::optional<std::int64_t> token_id_or_null(const JsonCursor& value) {
  if (value.is_null()) return std::nullopt;
  return value.integer(0, max_int32);
}

/// Whether `path` is relative, stays below where it starts, and is written in one way only.
bool is_path_inside(std::string_view path) {
  if (path.empty() || path.back() == '/') return false;
  const auto allowed = [](char c) { return static_cast<unsigned char>(c) >= 0x20 && c != 0x7F && c != '\\'; };
  if (!std::ranges::all_of(path, allowed)) return false;
  while (!path.empty()) {
    const std::size_t slash = std::min(path.find('/'), path.size());
    const std::string_view component = path.substr(0, slash);
    if (component.empty() || component == "." || component == "..") return false;
    path.remove_prefix(std::min(slash + 1, path.size()));
  }
  return true;
}

// --- the sections of the manifest, in the order in which they are checked ---

void check_format(const JsonCursor& root, const std::string& source) {
  const std::int64_t format = root.at("format").integer(1);
  if (format == engine_format) return;
  const auto writer = root.find("precast_version");
  const std::string by = writer ? " of precast " + writer->printable_name() : "";
  unsupported(source, "engine format ", format, by, " is newer than format ", engine_format, ", which this precast ",
              version(), " reads: update precast, or rebuild the engine with this version");
}

std::vector<std::string> read_requires(const JsonCursor& root, const RuntimeSupport& support,
                                       const std::string& source) {
  std::vector<std::string> names = name_texts(root.at("requires"));
  std::vector<std::string> unknown;
  std::ranges::copy_if(names, std::back_inserter(unknown), [&](const std::string& n) { return !support.supports(n); });
  if (!unknown.empty()) {
    unsupported(source, "the engine requires ", join(unknown), ", which this precast ", version(),
                " does not have: update precast, or rebuild the engine with this version");
  }
  return names;
}

std::string read_backend(const JsonCursor& root, const RuntimeSupport& support, const std::string& source) {
  std::string backend = root.at("backend").printable_name();
  if (std::ranges::find(support.backends, backend) == support.backends.end()) {
    unsupported(source, "the engine was built for the backend ", backend, ", this runtime has ",
                join(support.backends), ": rebuild the engine for one of these");
  }
  return backend;
}

Mapping read_mapping(const JsonCursor& root, const RuntimeSupport& support, const std::string& source) {
  const JsonCursor value = root.at("mapping");
  constexpr std::int64_t max_size = 1 << 15;  // so that a product of two cannot overflow
  const Mapping mapping{.world_size = value.at("world_size").integer(1, max_int32),
                        .tensor_parallel_size = value.at("tensor_parallel_size").integer(1, max_size),
                        .pipeline_parallel_size = value.at("pipeline_parallel_size").integer(1, max_size)};
  const std::int64_t product = mapping.tensor_parallel_size * mapping.pipeline_parallel_size;
  if (mapping.world_size != product) {
    value.at("world_size").fail(concat("be tensor_parallel_size x pipeline_parallel_size = ", product, ", got ",
                                       mapping.world_size));
  }
  if (mapping.world_size > support.max_world_size) {
    unsupported(source, "the engine was built for ", mapping.world_size, " ranks, this runtime runs at most ",
                support.max_world_size, ": rebuild the engine for fewer");
  }
  return mapping;
}

OnnxRuntimeRequirements read_onnxruntime_requirements(const JsonCursor& value) {
  return {.onnxruntime_min = value.at("onnxruntime_min").printable_name(),
          .ir_version = value.at("ir_version").integer(1, max_int32),
          .opset = value.at("opset").integer(1, max_int32)};
}

DeviceRequirements read_device_requirements(const JsonCursor& value) {
  return {.max_batch_size = value.at("max_batch_size").integer(1, max_int32),
          .max_num_tokens = value.at("max_num_tokens").integer(1, max_int32)};
}

ModelInfo read_model(const JsonCursor& value) {
  ModelInfo model;
  model.architecture = value.at("architecture").printable_name();
  model.vocab_size = value.at("vocab_size").integer(1, max_int32);
  model.hidden_size = value.at("hidden_size").integer(1, max_int32);
  model.num_layers = value.at("num_layers").integer(1, max_int32);
  model.max_seq_len = value.at("max_seq_len").integer(1, max_int32);
  model.bos_token_id = token_id_or_null(value.at("bos_token_id"));
  for (const JsonCursor& id : value.at("eos_token_ids").elements()) {
    model.eos_token_ids.push_back(id.integer(0, max_int32));
  }
  model.pad_token_id = token_id_or_null(value.at("pad_token_id"));
  return model;
}

BuildInfo read_build(const JsonCursor& value) {
  BuildInfo build;
  build.dtype = value.at("dtype").printable_name();
  build.kv_cache_dtype = value.at("kv_cache_dtype").printable_name();
  build.tokens_per_block = value.at("tokens_per_block").integer(1, max_int32);
  const JsonCursor max_seq_len = value.at("max_seq_len");
  if (!max_seq_len.is_null()) build.max_seq_len = max_seq_len.integer(1, max_int32);
  for (const JsonCursor& note : value.at("notes").elements()) build.notes.push_back(note.string());
  return build;
}

std::vector<FileEntry> read_files(const JsonCursor& value) {
  std::vector<FileEntry> files;
  for (const auto& [path, entry] : value.members()) {
    if (!is_path_inside(path)) entry.fail("have a relative path inside the engine directory as its name");
    if (path == "engine.json" || path == "verification.json") entry.fail("not be listed");
    const auto is_hex = [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); };
    const JsonCursor sha256 = entry.at("sha256");
    if (sha256.string().size() != 64 || !std::ranges::all_of(sha256.string(), is_hex)) {
      sha256.fail(concat("be 64 lower-case hexadecimal digits, got ", quote(sha256.string())));
    }
    files.push_back({.path = std::string(path),
                     .size_bytes = static_cast<std::uint64_t>(entry.at("size").integer(0, max_int64)),
                     .sha256 = sha256.string()});
  }
  std::ranges::sort(files, {}, &FileEntry::path);
  return files;
}

std::string listed_path(const JsonCursor& value, const std::vector<FileEntry>& files) {
  const std::string& path = value.string();
  if (!std::ranges::binary_search(files, path, {}, &FileEntry::path)) {
    value.fail(concat("be a path listed in files, got ", quote(path)));
  }
  return path;
}

/// `may_lack_weights`: whether a graph file may hold them.
std::vector<RankFiles> read_ranks(const JsonCursor& list, const Mapping& mapping, const std::vector<FileEntry>& files,
                                  bool may_lack_weights) {
  std::vector<RankFiles> ranks;
  for (const JsonCursor& value : list.elements()) {
    RankFiles rank;
    rank.graph = listed_path(value.at("graph"), files);
    const JsonCursor weights = value.at("weights");
    if (!may_lack_weights || !weights.is_null()) rank.weights = listed_path(weights, files);
    rank.kv_groups = read_kv_groups(value);
    rank.kv_caches = read_kv_caches(value, rank.kv_groups);
    ranks.push_back(std::move(rank));
  }
  if (ranks.size() != static_cast<std::size_t>(mapping.world_size)) {
    list.fail(concat("have mapping.world_size = ", mapping.world_size, " elements, got ", ranks.size()));
  }
  return ranks;
}

/// What engine_kv.py's check_ranks_kv checks.
void check_kv_groups(const JsonCursor& list, const std::vector<RankFiles>& ranks) {
  const std::vector<JsonCursor> values = list.elements();
  std::vector<bool> used(ranks.front().kv_groups.size());
  for (std::size_t i = 0; i < ranks.size(); ++i) {
    if (ranks[i].kv_groups != ranks.front().kv_groups) values[i].at("kv_groups").fail("equal those of ranks[0]");
    for (const KvCacheSpec& cache : ranks[i].kv_caches) used[cache.group] = true;
  }
  const std::vector<JsonCursor> groups = values.front().at("kv_groups").elements();
  for (std::size_t i = 0; i < groups.size(); ++i) {
    if (!used[i]) groups[i].fail("be the group of an element of a rank's kv_caches");
  }
}

[[noreturn]] void fail_not_an_engine(const std::filesystem::path& directory) {
  std::error_code ignored;  // a path that cannot be looked at is reported as one that holds no engine
  const std::string name = directory.string();
  if (!std::filesystem::exists(directory, ignored)) throw Error(ErrorCode::not_found, name + ": no such directory");
  if (!std::filesystem::is_directory(directory, ignored)) {
    throw Error(ErrorCode::not_found, name + ": not a directory; an engine is a directory with an engine.json");
  }
  const bool is_checkpoint = std::filesystem::exists(directory / "config.json", ignored);
  throw Error(ErrorCode::not_found,
              name + ": not an engine directory, it has no engine.json" +
                  (is_checkpoint ? "; it looks like a Hugging Face checkpoint: build an engine from it first" : ""));
}

}  // namespace

EngineManifest parse_manifest(std::string_view text, const std::string& source, const RuntimeSupport& support) {
  const JsonValue document = parse_json(text, source);
  const JsonCursor root(document, source);
  check_format(root, source);
  EngineManifest manifest;
  manifest.backend = read_backend(root, support, source);
  manifest.required_names = read_requires(root, support, source);
  manifest.mapping = read_mapping(root, support, source);
  manifest.precast_version = root.at("precast_version").printable_name();
  if (manifest.backend == "onnxruntime") {
    manifest.onnxruntime = read_onnxruntime_requirements(root.at("backend_requirements"));
  } else {
    manifest.device = read_device_requirements(root.at("backend_requirements"));
  }
  manifest.batch_invariant = root.at("batch_invariant").boolean();
  manifest.reproducible = root.at("reproducible").boolean();
  manifest.model = read_model(root.at("model"));
  manifest.build = read_build(root.at("build"));
  manifest.files = read_files(root.at("files"));
  manifest.ranks = read_ranks(root.at("ranks"), manifest.mapping, manifest.files, manifest.backend == "tensorrt");
  check_kv_groups(root.at("ranks"), manifest.ranks);
  return manifest;
}

void check_files(const EngineManifest& manifest) {
  for (const FileEntry& entry : manifest.files) {
    const std::string path = (manifest.directory / entry.path).string();
    struct stat status {};
    if (::stat(path.c_str(), &status) != 0) {
      if (errno != ENOENT && errno != ENOTDIR) {
        throw Error(ErrorCode::io, concat(path, ": cannot read its size: ", system_message(errno)));
      }
      throw Error(ErrorCode::corrupt_engine, concat(path, ": missing, engine.json lists it with ", entry.size_bytes,
                                                    " bytes: copy the engine again or rebuild it"));
    }
    if (!S_ISREG(status.st_mode)) {
      throw Error(ErrorCode::corrupt_engine, concat(path, ": not a regular file, engine.json lists it as one"));
    }
    if (static_cast<std::uint64_t>(status.st_size) != entry.size_bytes) {
      throw Error(ErrorCode::corrupt_engine, concat(path, ": is ", status.st_size, " bytes, engine.json says ",
                                                    entry.size_bytes, ": copy the engine again or rebuild it"));
    }
  }
}

EngineManifest read_manifest(const std::filesystem::path& directory, const RuntimeSupport& support) {
  const std::filesystem::path path = directory / "engine.json";
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored) && !ignored) fail_not_an_engine(directory);
  const MappedFile file = MappedFile::open(path);
  const std::span<const std::byte> bytes = file.bytes();
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  EngineManifest manifest = parse_manifest(text, path.string(), support);
  manifest.directory = directory;
  check_files(manifest);
  return manifest;
}

}  // namespace precast
