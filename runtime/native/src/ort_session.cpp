#include "runtime/native/src/ort_session.h"

#include <sched.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <new>
#include <stdexcept>
#include <thread>
#include <utility>
#include <vector>

#include "runtime/native/src/concat.h"
#include "runtime/native/src/error.h"
#include "runtime/native/src/kernel_level.h"
#include "runtime/native/src/mapped_file.h"
#include "runtime/native/src/ort_library.h"
#include "runtime/native/src/ort_ops/ort_op.h"
#include "runtime/native/src/ort_tensor.h"
#include "runtime/native/src/pool_memory.h"
#include "runtime/native/src/weights_file.h"

namespace precast {
namespace {

constexpr std::uint32_t max_threads = 1024;

std::uint32_t choose_num_threads(std::uint32_t wanted) {
  if (wanted > max_threads) {
    throw Error(ErrorCode::invalid_argument, concat("num_threads is ", wanted, "; at most ", max_threads, " are possible"));
  }
  if (wanted != 0) return wanted;
  cpu_set_t processors;
  // Fails where the machine has more processors than a cpu_set_t: then all of them are counted.
  const bool known = ::sched_getaffinity(0, sizeof processors, &processors) == 0;
  const auto count = known ? static_cast<std::uint32_t>(CPU_COUNT(&processors)) : std::thread::hardware_concurrency();
  return std::clamp(count, 1U, max_threads);
}

std::shared_ptr<const OrtLibrary> open_onnxruntime(const EngineManifest& manifest, const std::string& path) {
  std::shared_ptr<const OrtLibrary> library = OrtLibrary::open(path);
  if (manifest.onnxruntime && !is_at_least(library->version(), manifest.onnxruntime->onnxruntime_min)) {
    throw Error(ErrorCode::unsupported_engine,
                concat(manifest.directory.string(), " needs ONNX Runtime ", manifest.onnxruntime->onnxruntime_min,
                       " or newer, and this is ", library->version(), " at ", quote(library->path())));
  }
  return library;
}

/// Memory for logits that only grows, and is not cleared.
class LogitsBuffer {
 public:
  float* reserve(std::size_t count) {
    if (count > capacity_) {
      memory_.reset();
      capacity_ = 0;
      memory_.reset(static_cast<float*>(::operator new(count * sizeof(float), alignment)));
      capacity_ = count;
    }
    return memory_.get();
  }

 private:
  static constexpr std::align_val_t alignment{64};
  struct Free {
    void operator()(float* memory) const noexcept { ::operator delete(memory, alignment); }
  };

  std::unique_ptr<float, Free> memory_;
  std::size_t capacity_ = 0;
};

}  // namespace

class OrtSession::Impl {
 public:
  Impl(const EngineManifest& manifest, const OrtSessionOptions& options)
      : library_(open_onnxruntime(manifest, options.onnxruntime_path)),
        api_(library_->api()),
        rank_(manifest.ranks.at(options.rank)),
        weights_(WeightsFile::open(manifest.directory / rank_.weights)),
        pools_(rank_.kv_caches, options.num_blocks),
        ops_(api_, state_),
        tensors_(api_),
        vocab_size_(manifest.model.vocab_size),
        kv_groups_(rank_.kv_groups),
        is_last_stage_(options.rank + static_cast<std::size_t>(manifest.mapping.tensor_parallel_size) >=
                       manifest.ranks.size()),
        has_logits_(is_last_stage_ && options.rank % static_cast<std::size_t>(manifest.mapping.tensor_parallel_size) == 0) {
    state_.level = choose_kernel_level(options.kernel_level);
    state_.num_threads = choose_num_threads(options.num_threads);
    state_.pools = &pools_;
    state_.communicator = options.communicator;
    create_session(manifest.directory / rank_.graph);
    bind_pools();
  }

  const OrtLibrary& library() const noexcept { return *library_; }
  const WeightsFile& weights() const noexcept { return weights_; }
  const KernelState& state() const noexcept { return state_; }

  void enqueue(const StepBatch& batch) {
    if (batch_ != nullptr) throw std::logic_error("a step is enqueued while another is in flight");
    check_sizes(batch);
    batch_ = &batch;
  }

  StepResult collect(std::uint64_t step) {
    if (batch_ == nullptr || step != batch_->id) throw std::logic_error("a step is collected that is not in flight");
    const StepBatch& batch = *std::exchange(batch_, nullptr);
    bind_step(batch);
    const std::span<const float> logits = bind_output(has_logits_ ? batch.logit_rows.size() : 0);
    ort::check(api_, api_.RunWithBinding(session_.get(), nullptr, binding_.get()),
               concat("compute a step of ", batch.num_tokens(), " tokens"));
    return {.logits = logits, .token_ids = {}};
  }

 private:
  void create_session(const std::filesystem::path& graph) {
    const auto options = ort::make<ort::SessionOptions>(api_, api_.ReleaseSessionOptions, "make options",
                                                        [&](auto** out) { return api_.CreateSessionOptions(out); });
    configure(*options, graph.parent_path());
    add_initializers(*options);
    ops_.add_to(*options);
    const MappedFile file = MappedFile::open(graph);
    session_ = ort::make<ort::Session>(api_, api_.ReleaseSession, concat("load ", graph.string()), [&](auto** out) {
      return api_.CreateSessionFromArray(&library_->env(), file.bytes().data(), file.bytes().size(), options.get(), out);
    });
    binding_ = ort::make<ort::IoBinding>(api_, api_.ReleaseIoBinding, "bind inputs", [&](auto** out) {
      return api_.CreateIoBinding(session_.get(), out);
    });
  }

  void configure(ort::SessionOptions& options, const std::filesystem::path& folder) const {
    const auto set = [&](ort::Status* status) { ort::check(api_, status, "set an option"); };
    // Fusions are the builder's: engines must not depend on what one release of ONNX Runtime does to a graph.
    set(api_.SetSessionGraphOptimizationLevel(&options, ort::GraphOptimizationLevel::disable_all));
    // These threads spin between ops, so that handing them work costs about a microsecond, and sleep soon after a step.
    set(api_.SetIntraOpNumThreads(&options, static_cast<int>(state_.num_threads)));
    // Patterns are kept for every shape of inputs, and every step has another.
    set(api_.DisableMemPattern(&options));
    set(api_.AddSessionConfigEntry(&options, "session.use_env_allocators", "1"));
    // The graph names weights.bin as the place of its initialisers. They are given by add_initializers and never read from
    // there, but ONNX Runtime looks whether the file is there, relative to this folder.
    set(api_.AddSessionConfigEntry(&options, "session.model_external_initializers_file_folder_path", folder.c_str()));
  }

  void add_initializers(ort::SessionOptions& options) {
    for (const TensorEntry& tensor : weights_.tensors()) {
      initializers_.push_back(
          tensors_.make(to_element_type(tensor.type), tensor.data, tensor.size_bytes, tensor.shape));
      ort::check(api_, api_.AddInitializer(&options, tensor.name.c_str(), initializers_.back().get()),
                 concat("take the weight ", quote(tensor.name)));
    }
  }

  void bind_pools() {
    for (const PoolMemory::Pool& pool : pools_.pools()) {
      bind_input(pool.name.c_str(), ort::ElementType::uint8, pool.data, pool.size_bytes(),
                 std::array{pool.num_blocks, pool.block_bytes});
    }
  }

  void bind_step(const StepBatch& batch) {
    const auto num_sequences = static_cast<std::int64_t>(batch.num_sequences());
    bind_vector("token_ids", batch.token_ids);
    bind_vector("query_starts", batch.query_starts);
    bind_vector("context_lengths", batch.context_lengths);
    for (std::size_t g = 0; g < kv_groups_.size(); ++g) {
      const BlockTable& table = batch.block_tables[g];
      bind_input(kv_groups_[g].block_tables.c_str(), ort::ElementType::int32, table.blocks.data(),
                 table.blocks.size() * sizeof(std::int32_t), std::array{num_sequences, std::int64_t{table.width}});
    }
    bind_vector("logit_rows", batch.logit_rows);
  }

  std::span<const float> bind_output(std::size_t num_rows) {
    if (!is_last_stage_) {
      const auto value =
          tensors_.make(ort::ElementType::int32, &num_sent_rows_, sizeof num_sent_rows_, std::array{std::int64_t{1}});
      ort::check(api_, api_.BindOutput(binding_.get(), "sent_rows", value.get()), "bind the output sent_rows");
      return {};
    }
    const std::size_t count = num_rows * static_cast<std::size_t>(vocab_size_);
    float* const data = logits_.reserve(std::max<std::size_t>(count, 1));
    const std::array shape{static_cast<std::int64_t>(num_rows), vocab_size_};
    const auto value = tensors_.make(ort::ElementType::float32, data, count * sizeof(float), shape);
    ort::check(api_, api_.BindOutput(binding_.get(), "logits", value.get()), "bind the output logits");
    return {data, count};
  }

  void bind_vector(const char* name, const std::vector<std::int32_t>& vector) {
    bind_input(name, ort::ElementType::int32, vector.data(), vector.size() * sizeof(std::int32_t),
               std::array{static_cast<std::int64_t>(vector.size())});
  }

  void bind_input(const char* name, ort::ElementType type, const void* data, std::size_t size_bytes,
                  std::span<const std::int64_t> shape) {
    const auto value = tensors_.make(type, data, size_bytes, shape);
    ort::check(api_, api_.BindInput(binding_.get(), name, value.get()), concat("bind the input ", quote(name)));
  }

  void check_sizes(const StepBatch& batch) const {
    const std::size_t num_sequences = batch.num_sequences();
    if (batch.query_starts.size() != num_sequences + 1) {
      throw std::logic_error(concat("a step of ", num_sequences, " sequences has ", batch.query_starts.size(),
                                    " query starts"));
    }
    if (batch.block_tables.size() != kv_groups_.size()) {
      throw std::logic_error(concat("a step has ", batch.block_tables.size(), " block tables, and the engine ",
                                    kv_groups_.size(), " KV groups"));
    }
    if (!batch.token_sources.empty()) {
      throw std::logic_error(concat("a step has ", batch.token_sources.size(), " tokens that are not known"));
    }
    for (const BlockTable& table : batch.block_tables) {
      if (table.blocks.size() == num_sequences * static_cast<std::size_t>(table.width)) continue;
      throw std::logic_error(concat("a step of ", num_sequences, " sequences has a block table of ",
                                    table.blocks.size(), " entries, ", table.width, " wide"));
    }
  }

  // In the order that destruction needs: ONNX Runtime's session uses everything above it.
  std::shared_ptr<const OrtLibrary> library_;
  const ort::Api& api_;
  const RankFiles rank_;
  WeightsFile weights_;
  PoolMemory pools_;
  KernelState state_;
  OrtOps ops_;
  TensorMaker tensors_;
  std::vector<ort::Handle<ort::Value>> initializers_;
  LogitsBuffer logits_;
  ort::Handle<ort::Session> session_{nullptr, nullptr};
  ort::Handle<ort::IoBinding> binding_{nullptr, nullptr};

  const std::int64_t vocab_size_;
  const std::vector<KvGroupSpec> kv_groups_;
  const bool is_last_stage_;
  const bool has_logits_;
  std::int32_t num_sent_rows_ = 0;
  const StepBatch* batch_ = nullptr;  // of the step in flight
};

std::unique_ptr<OrtSession> OrtSession::load(const EngineManifest& manifest, const OrtSessionOptions& options) {
  return std::unique_ptr<OrtSession>(new OrtSession(std::make_unique<Impl>(manifest, options)));
}

OrtSession::OrtSession(std::unique_ptr<Impl> impl) noexcept : impl_(std::move(impl)) {}

OrtSession::~OrtSession() = default;

void OrtSession::enqueue(const StepBatch& batch) { impl_->enqueue(batch); }

StepResult OrtSession::collect(std::uint64_t step) { return impl_->collect(step); }

std::uint32_t OrtSession::num_threads() const noexcept { return static_cast<std::uint32_t>(impl_->state().num_threads); }

KernelLevel OrtSession::kernel_level() const noexcept { return impl_->state().level; }

const std::string& OrtSession::onnxruntime_version() const noexcept { return impl_->library().version(); }

std::uint64_t OrtSession::weights_bytes() const noexcept { return impl_->weights().file().bytes().size(); }

std::uint64_t OrtSession::weights_huge_page_bytes() const { return impl_->weights().file().huge_page_mapped_bytes(); }

}  // namespace precast
