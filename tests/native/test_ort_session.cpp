// OrtSession with a real ONNX Runtime, whose path is in PRECAST_ONNXRUNTIME; without it these tests say that they are
// skipped. The engine is a tiny one, and the expectations are exact: same bits, whatever runs beside a sequence.
#include "runtime/native/src/ort_session.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <random>

#include "tests/native/check.h"
#include "tests/native/engine_files.h"
#include "tests/native/kernel_inputs.h"
#include "tests/native/tiny_engine.h"

namespace precast::test {
namespace {

using Tokens = std::vector<std::int32_t>;

bool has_onnxruntime(const char* test) {
  const char* const path = std::getenv("PRECAST_ONNXRUNTIME");
  if (path != nullptr && *path != '\0') return true;
  std::printf("SKIPPED %s: PRECAST_ONNXRUNTIME names no libonnxruntime.so\n", test);
  return false;
}

/// A sequence's share of a step: tokens [begin, end) of it, computed in blocks `blocks`, and `windowed_blocks` in a second
/// KV group.
struct Part {
  const Tokens& tokens;
  std::size_t begin;
  std::size_t end;
  Tokens blocks;
  Tokens windowed_blocks{};
};

BlockTable make_table(const std::vector<Tokens>& rows) {
  BlockTable table;
  for (const Tokens& row : rows) table.width = std::max(table.width, static_cast<std::int32_t>(row.size()));
  for (Tokens row : rows) {
    row.resize(static_cast<std::size_t>(table.width), -1);
    table.blocks.insert(table.blocks.end(), row.begin(), row.end());
  }
  return table;
}

/// A step in which every row wants logits.
StepBatch make_batch(const std::vector<Part>& parts) {
  StepBatch batch;
  batch.query_starts = {0};
  std::vector<Tokens> blocks;
  std::vector<Tokens> windowed_blocks;
  for (const Part& part : parts) {
    for (std::size_t i = part.begin; i < part.end; ++i) batch.token_ids.push_back(part.tokens[i]);
    batch.query_starts.push_back(static_cast<std::int32_t>(batch.token_ids.size()));
    batch.context_lengths.push_back(static_cast<std::int32_t>(part.end));
    blocks.push_back(part.blocks);
    windowed_blocks.push_back(part.windowed_blocks);
  }
  batch.block_tables.push_back(make_table(blocks));
  const bool has_two_groups = std::ranges::any_of(windowed_blocks, [](const Tokens& row) { return !row.empty(); });
  if (has_two_groups) batch.block_tables.push_back(make_table(windowed_blocks));
  batch.logit_rows.resize(batch.token_ids.size());
  std::iota(batch.logit_rows.begin(), batch.logit_rows.end(), 0);
  return batch;
}

std::vector<float> run(OrtSession& session, const StepBatch& batch) {
  session.enqueue(batch);
  const StepResult result = session.collect(batch.id);
  CHECK_EQ(result.logits.size(), batch.logit_rows.size() * TinyEngine::vocab_size);
  return {result.logits.begin(), result.logits.end()};
}

Tokens tokens_of(unsigned seed, std::size_t count) {
  std::mt19937 generator(seed);
  Tokens tokens(count);
  for (std::int32_t& token : tokens) token = static_cast<std::int32_t>(generator() % TinyEngine::vocab_size);
  return tokens;
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

std::vector<float> rows(const std::vector<float>& logits, std::size_t begin, std::size_t end) {
  const auto width = static_cast<std::ptrdiff_t>(TinyEngine::vocab_size);
  return {logits.begin() + static_cast<std::ptrdiff_t>(begin) * width,
          logits.begin() + static_cast<std::ptrdiff_t>(end) * width};
}

struct World {
  TemporaryDirectory directory;
  EngineManifest manifest;

  explicit World(bool bf16 = false) : manifest(TinyEngine(bf16).write(directory)) {}
  explicit World(const TinyEngine& engine) : manifest(engine.write(directory)) {}

  std::unique_ptr<OrtSession> load(const OrtSessionOptions& options) const { return OrtSession::load(manifest, options); }
  std::unique_ptr<OrtSession> load() const { return load({.num_blocks = 12}); }
};

}  // namespace

TEST("an ORT session gives the same bits whatever the chunks, the neighbours, the blocks and the threads") {
  if (!has_onnxruntime("the session's bits")) return;
  const Tokens a = tokens_of(1, 40);
  const Tokens b = tokens_of(2, 21);
  for (const bool bf16 : {false, true}) {
    const World world(bf16);
    for (const KernelLevel level : levels_of_this_machine()) {
      std::vector<float> expected;
      for (const std::uint32_t num_threads : {1U, 2U, 5U}) {
        const auto session =
            world.load({.num_threads = num_threads, .kernel_level = std::string(name(level)), .num_blocks = 12});
        CHECK_EQ(session->num_threads(), num_threads);
        CHECK(session->kernel_level() == level);
        const std::vector<float> alone = run(*session, make_batch({{a, 0, 40, {3, 1, 2}}}));
        if (expected.empty()) expected = alone;
        CHECK(std::isfinite(std::accumulate(alone.begin(), alone.end(), 0.0f)));
        CHECK(same_bits(alone, expected));
        CHECK(same_bits(run(*session, make_batch({{b, 0, 7, {5}}, {a, 0, 17, {9, 8}}})).data() + 7 * TinyEngine::vocab_size,
                        expected.data(), 17 * static_cast<std::size_t>(TinyEngine::vocab_size)));
        const std::vector<float> rest = run(*session, make_batch({{a, 17, 40, {9, 8, 0}}, {b, 7, 21, {5, 11}}}));
        CHECK(same_bits(rows(rest, 0, 23), rows(expected, 17, 40)));
      }
    }
  }
}

TEST("KV groups share pages: a windowed layer's blocks go to others, and the bits stay") {
  if (!has_onnxruntime("KV groups share pages")) return;
  const Tokens a = tokens_of(1, 70);
  const Tokens b = tokens_of(2, 40);
  for (const std::array<std::int64_t, 2> windows : {std::array<std::int64_t, 2>{0, 20}, {20, 0}}) {
    const World world(TinyEngine(false, windows));
    const auto session = world.load();
    const std::vector<float> whole_a = run(*session, make_batch({{a, 0, 70, {0, 1, 2, 3, 4}, {5, 6, 7, 8, 9}}}));
    const std::vector<float> whole_b = run(*session, make_batch({{b, 0, 40, {0, 1, 2}, {3, 4, 5}}}));

    // Pages that leave a's window serve b's windowed layer, and then a's full one.
    CHECK(same_bits(run(*session, make_batch({{a, 0, 40, {0, 1, 2}, {3, 4, 5}}})), rows(whole_a, 0, 40)));
    const auto step = run(*session, make_batch({{a, 40, 60, {0, 1, 2, 6}, {-1, 4, 5, 7}}, {b, 0, 16, {8}, {3}}}));
    CHECK(same_bits(rows(step, 0, 20), rows(whole_a, 40, 60)));
    CHECK(same_bits(rows(step, 20, 36), rows(whole_b, 0, 16)));
    // At position 60 the window begins at 41, in the third block. b's own window begins at 0 for its row 16.
    const auto last = run(*session, make_batch({{b, 16, 32, {8, 9}, {3, 10}},
                                                {a, 60, 70, {0, 1, 2, 6, 4}, {-1, -1, 5, 7, 11}}}));
    CHECK(same_bits(rows(last, 0, 16), rows(whole_b, 16, 32)));
    CHECK(same_bits(rows(last, 16, 26), rows(whole_a, 60, 70)));
    CHECK(!same_bits(whole_a, run(*World(false).load(), make_batch({{a, 0, 70, {0, 1, 2, 3, 4}}}))));
  }
}

TEST("an ORT session computes the rows that want logits, and none where none does") {
  if (!has_onnxruntime("rows that want logits")) return;
  const World world;
  const auto session = world.load();
  const Tokens a = tokens_of(3, 20);
  StepBatch batch = make_batch({{a, 0, 20, {0, 1}}});
  const std::vector<float> all = run(*session, batch);
  batch.logit_rows = {4, 19};
  const std::vector<float> two = run(*session, batch);
  CHECK(same_bits(rows(two, 0, 1), rows(all, 4, 5)));
  CHECK(same_bits(rows(two, 1, 2), rows(all, 19, 20)));
  batch.logit_rows.clear();
  CHECK_EQ(run(*session, batch).size(), 0U);
}

TEST("a step that fails names the node and leaves the ORT session usable") {
  if (!has_onnxruntime("a step that fails")) return;
  const World world;
  const auto session = world.load();
  const Tokens a = tokens_of(4, 20);
  const StepBatch good = make_batch({{a, 0, 20, {0, 1}}});
  const std::vector<float> expected = run(*session, good);

  StepBatch bad = good;
  bad.token_ids[7] = TinyEngine::vocab_size;
  CHECK(contains(refusal([&] { run(*session, bad); }), "node \"node0\" (ai.precast.Embedding): "));
  CHECK(contains(refusal([&] { run(*session, bad); }), "token_ids[7]"));
  bad = good;
  bad.block_tables[0].blocks[1] = 12;
  CHECK(contains(refusal([&] { run(*session, bad); }), "block_tables[0][1] is 12"));
  bad = good;
  bad.context_lengths[0] = 19;
  CHECK_EQ(refusal_code([&] { run(*session, bad); }), static_cast<int>(ErrorCode::onnxruntime));
  bad = good;
  bad.logit_rows[0] = 20;
  CHECK_EQ(refusal_code([&] { run(*session, bad); }), static_cast<int>(ErrorCode::onnxruntime));

  CHECK(same_bits(run(*session, good), expected));
}

TEST("an ORT session has one step in flight, and misuse is a logic error") {
  if (!has_onnxruntime("one step in flight")) return;
  const World world;
  const auto session = world.load();
  const Tokens a = tokens_of(5, 3);
  StepBatch batch = make_batch({{a, 0, 3, {0}}});
  CHECK_EQ(session->max_in_flight(), 1U);
  CHECK_THROWS(session->collect(0));
  session->enqueue(batch);
  CHECK_THROWS(session->enqueue(batch));
  CHECK_THROWS(session->collect(batch.id + 1));
  CHECK_EQ(session->collect(batch.id).logits.size(), 3 * static_cast<std::size_t>(TinyEngine::vocab_size));
  CHECK_THROWS(session->collect(batch.id));
  StepBatch bad = batch;
  bad.query_starts.push_back(3);
  CHECK_THROWS(session->enqueue(bad));
  bad = batch;
  bad.block_tables[0].width = 2;
  CHECK_THROWS(session->enqueue(bad));
  bad = batch;
  bad.block_tables.push_back(bad.block_tables[0]);
  CHECK_THROWS(session->enqueue(bad));
}

TEST("ORT sessions come and go, side by side and after one another") {
  if (!has_onnxruntime("sessions come and go")) return;
  const World first_world;
  const World second_world(true);
  const Tokens a = tokens_of(6, 5);
  const StepBatch batch = make_batch({{a, 0, 5, {0}}});
  std::vector<float> expected;
  for (int round = 0; round < 3; ++round) {
    const auto first = first_world.load();
    const auto second = second_world.load();
    const std::vector<float> logits = run(*first, batch);
    if (expected.empty()) expected = logits;
    CHECK(!same_bits(run(*second, batch), logits));
    CHECK(same_bits(logits, expected));
  }
}

TEST("an ORT session refuses options that cannot be") {
  if (!has_onnxruntime("options that cannot be")) return;
  const World world;
  CHECK(starts_with(refusal([&] { world.load({.num_threads = 5000, .num_blocks = 1}); }), "num_threads is 5000"));
  CHECK(starts_with(refusal([&] { world.load({.kernel_level = "sse", .num_blocks = 1}); }), "kernel_level is \"sse\""));
  CHECK(starts_with(refusal([&] { world.load({.num_blocks = 0}); }), "num_blocks is 0"));
  EngineManifest newer = world.manifest;
  newer.onnxruntime->onnxruntime_min = "99.0";
  CHECK(contains(refusal([&] { OrtSession::load(newer, {.num_blocks = 1}); }), "needs ONNX Runtime 99.0 or newer"));
}

TEST("a step on weights of another layout fails, and names the node and both sizes") {
  if (!has_onnxruntime("weights of another layout")) return;
  const World bf16(true);
  const World fp32(false);
  std::filesystem::copy_file(bf16.directory.path() / "rank0/weights.bin", fp32.directory.path() / "rank0/weights.bin",
                             std::filesystem::copy_options::overwrite_existing);
  const Tokens a = tokens_of(7, 3);
  const auto session = fp32.load();
  const std::string text = refusal([&] { run(*session, make_batch({{a, 0, 3, {0}}})); });
  CHECK(contains(text, "node \"node0\" (ai.precast.Embedding)"));
  CHECK(contains(text, "6144 bytes, not 3072"));
}

TEST("an ORT session refuses a graph that does not fit its manifest, and names the node") {
  if (!has_onnxruntime("a graph that does not fit")) return;
  const World world;
  const auto refusal_of = [](const EngineManifest& manifest) {
    return refusal([&] { OrtSession::load(manifest, {.num_blocks = 1}); });
  };
  EngineManifest manifest = world.manifest;
  manifest.ranks[0].kv_caches[1].name = "kv.7";
  CHECK(contains(refusal_of(manifest),
                 "node \"node8\" (ai.precast.PagedAttention): the manifest lists no KV cache \"kv.1\""));
  manifest = world.manifest;
  manifest.ranks[0].kv_caches[0].block_bytes *= 2;
  CHECK(contains(refusal_of(manifest), "a block has 2048 bytes, and 4096 in the manifest"));

  TinyEngine engine(false);
  engine.graph.nodes[2].attributes[2].value = "x16k9.f32/1";
  CHECK(contains(refusal_of(World(engine).manifest), "(ai.precast.Linear): layout is \"x16k9.f32/1\""));
  engine = TinyEngine(false);
  engine.graph.nodes[2].attributes[0].value = std::int64_t{0};
  CHECK(contains(refusal_of(World(engine).manifest), "(ai.precast.Linear): in_features is 0"));
  engine = TinyEngine(false);
  engine.graph.nodes[1].attributes[0].value = std::nanf("");
  CHECK(contains(refusal_of(World(engine).manifest), "(ai.precast.RmsNorm): epsilon is nan"));
  engine = TinyEngine(false);
  engine.graph.nodes[1].attributes.clear();
  CHECK(contains(refusal_of(World(engine).manifest), "the number epsilon of node \"node1\" (ai.precast.RmsNorm)"));
}

}  // namespace precast::test
