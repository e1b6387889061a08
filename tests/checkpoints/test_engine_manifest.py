import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from precast.checkpoints.engine_checks import is_path_inside
from precast.checkpoints.engine_errors import CorruptEngineError, UnsupportedEngineError
from precast.checkpoints.engine_kv import KvCacheSpec, KvGroupSpec, kv_memories, kv_page_bytes
from precast.checkpoints.engine_manifest import (
    BuildInfo,
    EngineManifest,
    FileEntry,
    ModelInfo,
    OnnxRuntimeCudaRequirements,
    RankFiles,
    TensorRtRequirements,
)
from precast.checkpoints.engine_manifest_reader import ANY_RUNTIME, RuntimeSupport, parse_manifest
from precast.checkpoints.ranks.mapping import Mapping
from precast.version import __version__
from tests.checkpoints.tiny_engine import KV_CACHES, KV_GROUPS, WEIGHTS, tiny_manifest

SHA256 = "0123456789abcdef" * 4
ALL_TINY = RuntimeSupport(supports=tiny_manifest().requires.__contains__)


def listed_manifest() -> EngineManifest:
    files = {"model": FileEntry(7, SHA256), WEIGHTS: FileEntry(1 << 40, SHA256)}
    ranks = (RankFiles("model", WEIGHTS, KV_GROUPS, KV_CACHES),)
    return replace(tiny_manifest(), files=files, ranks=ranks)


def edited(path: str, value: object) -> bytes:
    """The tiny manifest with the member at `path`, a/b/0/c, set, or removed where value is `...`."""
    document = json.loads(listed_manifest().to_json())
    *parents, last = [int(part) if part.isdigit() else part for part in path.split("/")]
    place: Any = document
    for part in parents:
        place = place[part]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return json.dumps(document).encode()


def refusal(data: bytes, support: RuntimeSupport = ALL_TINY) -> str:
    with pytest.raises(CorruptEngineError) as caught:
        parse_manifest(data, "engine.json", support)
    return str(caught.value)


def test_round_trip() -> None:
    manifest = listed_manifest()
    assert parse_manifest(manifest.to_json(), "engine.json", ALL_TINY) == manifest


def test_bytes_are_canonical() -> None:
    data = listed_manifest().to_json()
    assert data == json.dumps(json.loads(data), indent=2, sort_keys=True, ensure_ascii=False).encode() + b"\n"
    assert json.loads(data)["format"] == 1
    assert "für Menschen".encode() in data


names = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=12)
sizes = st.integers(1, (1 << 31) - 1)
token_ids = st.integers(0, (1 << 31) - 1)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@st.composite
def kv_specs(draw: st.DrawFn) -> tuple[tuple[KvGroupSpec, ...], tuple[KvCacheSpec, ...]]:
    """Groups of any windows, each with some caches, in any order; memories of any sizes."""
    windows = sorted(draw(st.sets(st.just(0) | sizes, max_size=4)))
    memories = draw(st.lists(st.tuples(names, sizes), min_size=1, max_size=3))
    counts = [draw(st.integers(1, len(memories))) for _ in windows]
    order = draw(st.permutations([group for group, count in enumerate(counts) for _ in range(count)]))
    free = draw(st.lists(names, unique=True, min_size=len(windows) + len(order), max_size=len(windows) + len(order)))
    groups = tuple(KvGroupSpec(free.pop(), window or None) for window in windows)
    return groups, tuple(
        KvCacheSpec(free.pop(), *memories[order[:i].count(group)], group) for i, group in enumerate(order)
    )


@given(
    st.builds(ModelInfo, names, sizes, sizes, sizes, sizes, st.none() | token_ids, st.lists(token_ids).map(tuple)),
    st.builds(BuildInfo, names, names, sizes, st.none() | sizes, st.lists(texts).map(tuple)),
    kv_specs(),
    st.lists(names).map(tuple),
)
def test_whatever_can_be_made_is_read_back(
    model: ModelInfo,
    build: BuildInfo,
    kv: tuple[tuple[KvGroupSpec, ...], tuple[KvCacheSpec, ...]],
    requires: tuple[str, ...],
) -> None:
    ranks = (RankFiles("model", WEIGHTS, *kv),)
    manifest = replace(listed_manifest(), model=model, build=build, ranks=ranks, requires=requires)
    assert parse_manifest(manifest.to_json(), "engine.json") == manifest


NAME = "printable ASCII without spaces"
DIGITS = "64 lower-case hexadecimal digits"
CACHE = {"name": "a", "layout": "l", "block_bytes": 1, "group": 0}
SHARED = (
    "ranks[0].kv_caches[1] must have the layout and block_bytes of kv_caches[0], whose memory it shares, "
    "kv16.f32/1 and 4096, got kv16.f32/1 and 64"
)
ENTRY = {"size": 1, "sha256": SHA256}


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        ("format", ..., "format is missing"),
        ("format", "1", "format must be an integer, got a string"),
        ("format", 0, "format must be at least 1, got 0"),
        ("requires", ..., "requires is missing"),
        ("requires", ["a b"], f'requires[0] must be {NAME}, got "a b"'),
        ("backend", "", f'backend must be {NAME}, got ""'),
        ("backend_requirements/opset", 0, "backend_requirements.opset must be at least 1, got 0"),
        (
            "backend_requirements/onnxruntime_min",
            1,
            "backend_requirements.onnxruntime_min must be a string, got an integer",
        ),
        ("batch_invariant", 1, "batch_invariant must be a boolean, got an integer"),
        ("reproducible", None, "reproducible must be a boolean, got null"),
        (
            "mapping/world_size",
            2,
            "mapping.world_size must be tensor_parallel_size x pipeline_parallel_size = 1, got 2",
        ),
        ("mapping/tensor_parallel_size", 32769, "mapping.tensor_parallel_size must be at most 32768, got 32769"),
        ("model", [], "model must be an object, got an array"),
        ("model/vocab_size", "32", "model.vocab_size must be an integer, got a string"),
        ("model/vocab_size", 32.0, "model.vocab_size must be an integer, got a number that is not an integer"),
        ("model/vocab_size", 0, "model.vocab_size must be at least 1, got 0"),
        ("model/max_seq_len", 1 << 31, "model.max_seq_len must be at most 2147483647, got 2147483648"),
        ("model/eos_token_ids", 2, "model.eos_token_ids must be an array, got an integer"),
        ("model/eos_token_ids", [1, -1], "model.eos_token_ids[1] must be at least 0, got -1"),
        ("model/bos_token_id", ..., "model.bos_token_id is missing"),
        ("model/bos_token_id", -1, "model.bos_token_id must be at least 0, got -1"),
        ("model/architecture", "é", f'model.architecture must be {NAME}, got "é"'),
        ("build/tokens_per_block", 0, "build.tokens_per_block must be at least 1, got 0"),
        ("build/notes", [1], "build.notes[0] must be a string, got an integer"),
        ("files/model/size", -1, "files.model.size must be at least 0, got -1"),
        ("files/model/sha256", "0" * 63, f'files.model.sha256 must be {DIGITS}, got "{"0" * 63}"'),
        ("files/model/sha256", "A" * 64, f'files.model.sha256 must be {DIGITS}, got "{"A" * 64}"'),
        ("files/engine.json", ENTRY, 'files["engine.json"] must not be listed'),
        ("files/verification.json", ENTRY, 'files["verification.json"] must not be listed'),
        ("files/model", ..., 'ranks[0].graph must be a path listed in files, got "model"'),
        ("ranks", [], "ranks must have mapping.world_size = 1 elements, got 0"),
        ("ranks/0/graph", "../etc/passwd", 'ranks[0].graph must be a path listed in files, got "../etc/passwd"'),
        ("ranks/0/kv_caches/0/block_bytes", 0, "ranks[0].kv_caches[0].block_bytes must be at least 1, got 0"),
        ("ranks/0/kv_caches", [CACHE] * 2, 'ranks[0].kv_caches[1].name must differ from the names before it, got "a"'),
        (
            "ranks/0/kv_caches/1/name",
            "block_tables.1",
            'ranks[0].kv_caches[1].name must differ from the names before it, got "block_tables.1"',
        ),
        ("ranks/0/kv_caches/1/group", 2, "ranks[0].kv_caches[1].group must be less than the 2 kv_groups, got 2"),
        ("ranks/0/kv_caches/1/group", -1, "ranks[0].kv_caches[1].group must be at least 0, got -1"),
        ("ranks/0/kv_caches/1/group", 0, "ranks[0].kv_groups[1] must be the group of an element of a rank's kv_caches"),
        (
            "ranks/0/kv_caches/1/block_bytes",
            64,
            SHARED,
        ),
        ("ranks/0/kv_groups/1/window", ..., "ranks[0].kv_groups[1].window is missing"),
        ("ranks/0/kv_groups/1/window", 0, "ranks[0].kv_groups[1].window must be at least 1, got 0"),
        ("ranks/0/kv_groups/1/window", None, "ranks[0].kv_groups[1].window must not be null behind the first group"),
        ("ranks/0/kv_groups/0/window", 32, "ranks[0].kv_groups[1].window must be greater than 32 before it, got 32"),
        ("ranks/0/kv_groups/1/block_tables", "", f'ranks[0].kv_groups[1].block_tables must be {NAME}, got ""'),
        (
            "ranks/0/kv_groups/1/block_tables",
            "block_tables.0",
            'ranks[0].kv_groups[1].block_tables must differ from the names before it, got "block_tables.0"',
        ),
    ],
)
def test_every_rule_has_its_sentence(path: str, value: object, complaint: str) -> None:
    assert refusal(edited(path, value)) == f"engine.json: {complaint}"


HOSTILE_PATHS = [
    "../x", "a/../../x", "/etc/passwd", "a//b", "a/", "./a", "a/.", "", ".", "..", "a\\b", "a\0b", "a\nb", "\x7f", "/",
]  # fmt: skip


@pytest.mark.parametrize("path", HOSTILE_PATHS)
def test_paths_stay_inside_the_directory(path: str) -> None:
    assert not is_path_inside(path)
    document = json.loads(listed_manifest().to_json())
    document["files"][path] = {"size": 1, "sha256": SHA256}
    assert "must have a relative path inside the engine directory as its name" in refusal(json.dumps(document).encode())


@pytest.mark.parametrize("path", ["a", "a/b.c", "...", "..a", "a..", "tokenizer/ä ö.json", "a b"])
def test_ordinary_paths_are_allowed(path: str) -> None:
    assert is_path_inside(path)


def test_a_member_of_the_future_is_ignored() -> None:
    assert parse_manifest(edited("model/colour", "blue"), "engine.json", ALL_TINY) == listed_manifest()


def unsupported(data: bytes, support: RuntimeSupport = ALL_TINY) -> str:
    with pytest.raises(UnsupportedEngineError) as caught:
        parse_manifest(data, "e/engine.json", support)
    return str(caught.value)


def test_a_newer_format_is_named_before_anything_else_is_read() -> None:
    assert unsupported(b'{"format": 2, "precast_version": "9.1"}') == (
        "e/engine.json: engine format 2 of precast 9.1 is newer than format 1, "
        f"which this precast {__version__} reads: update precast, or rebuild the engine with this version"
    )
    assert "engine format 3 is newer" in unsupported(b'{"format": 3}')


def test_unknown_ops_and_layouts_are_all_named_before_the_rest_is_read() -> None:
    names = b'"requires": ["ai.precast.Linear/1", "ai.precast.New/7", "x9/1"]'
    text = unsupported(b'{"format": 1, "backend": "onnxruntime", ' + names + b"}")
    assert text == (
        f"e/engine.json: the engine requires ai.precast.New/7, x9/1, which this precast {__version__} does not have: "
        "update precast, or rebuild the engine with this version"
    )


def test_backend_and_world_size_come_before_the_rest() -> None:
    document: dict[str, object] = {"format": 1, "requires": [], "backend": "tensorrt"}
    assert unsupported(json.dumps(document).encode()) == (
        "e/engine.json: the engine was built for the backend tensorrt, this runtime has onnxruntime: "
        "rebuild the engine for one of these"
    )
    mapping = {"world_size": 6, "tensor_parallel_size": 2, "pipeline_parallel_size": 3}
    document |= {"backend": "onnxruntime", "mapping": mapping}
    assert unsupported(json.dumps(document).encode()) == (
        "e/engine.json: the engine was built for 6 ranks, this runtime runs at most 1: rebuild the engine for fewer"
    )


def test_the_caches_of_different_groups_share_memory() -> None:
    caches = [KvCacheSpec(str(i), "l", size, group) for i, (size, group) in enumerate([(10, 1), (10, 0), (7, 1)])]
    assert kv_memories(caches) == [[0, 1], [2]]
    assert kv_page_bytes(caches) == 17
    assert kv_memories([]) == []


def test_what_cannot_be_read_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="vocab_size must be at least 1, got 0"):
        replace(tiny_manifest().model, vocab_size=0)
    with pytest.raises(ValueError, match="world_size must be"):
        Mapping(tensor_parallel_size=2)
    with pytest.raises(ValueError, match="ranks must have"):
        replace(tiny_manifest(), ranks=())
    with pytest.raises(ValueError, match="inside the engine directory"):
        replace(tiny_manifest(), files={"../x": FileEntry(1, SHA256)})


# ----------------------------------------------------------------------------------------------------------- TensorRT


def tensorrt_manifest(**changes: Any) -> EngineManifest:
    requirements = {
        "library": "tensorrt_rtx",
        "library_version": "1.7.1",
        "targets": ("sm89", "sm120"),
        "min_capability": 89,
        "quantization": "int4",
        "max_batch_size": 8,
        "max_num_tokens": 64,
    }
    rank = RankFiles("model", None, KV_GROUPS, KV_CACHES)
    files = {"model": FileEntry(7, SHA256)}
    return replace(
        tiny_manifest(),
        backend="tensorrt",
        backend_requirements=TensorRtRequirements(**{**requirements, **changes}),
        ranks=(rank,),
        files=files,
    )


def test_a_manifest_of_tensorrt_comes_back() -> None:
    for changes in ({}, {"quantization": None, "targets": ("portable",), "library": "tensorrt"}):
        manifest = tensorrt_manifest(**changes)
        assert parse_manifest(manifest.to_json(), "engine.json") == manifest
    separate = replace(listed_manifest().ranks[0], network_sha256=SHA256)
    manifest = replace(tensorrt_manifest(), ranks=(separate,), files=listed_manifest().files)
    assert parse_manifest(manifest.to_json(), "engine.json") == manifest


@pytest.mark.parametrize(
    ("place", "value", "text"),
    [
        ("library", "cudnn", 'backend_requirements: library must be tensorrt_rtx or tensorrt, got "cudnn"'),
        ("targets", [], "backend_requirements: targets must be one or more different names"),
        ("targets", ["sm89", "sm89"], "backend_requirements: targets must be one or more different names"),
        ("min_capability", 0, "backend_requirements.min_capability must be at least 1, got 0"),
        ("quantization", "", f'backend_requirements.quantization must be {NAME}, got ""'),
        ("max_num_tokens", None, "backend_requirements.max_num_tokens must be an integer, got null"),
    ],
)
def test_rules_of_tensorrts_requirements(place: str, value: object, text: str) -> None:
    document = json.loads(tensorrt_manifest().to_json())
    document["backend_requirements"][place] = value
    with pytest.raises(CorruptEngineError) as raised:
        parse_manifest(json.dumps(document).encode(), "engine.json")
    assert text.split(": ", 1)[-1] in str(raised.value) or text in str(raised.value)


def test_rules_of_ranks_without_weights() -> None:
    with pytest.raises(ValueError, match=r"^network_sha256 must be absent where weights is null$"):
        RankFiles("model", None, KV_GROUPS, KV_CACHES, SHA256)
    manifest = replace(listed_manifest(), ranks=tensorrt_manifest().ranks)
    with pytest.raises(ValueError, match=r"^ranks\[0\]\.weights must be a path on the backend onnxruntime, got null$"):
        manifest.check_listed()
    with pytest.raises(ValueError, match=r"^backend_requirements must be those of the backend onnxruntime$"):
        replace(tensorrt_manifest(), backend="onnxruntime")


# ----------------------------------------------------------------------------------------------- ONNX Runtime on GPUs


def cuda_manifest(**changes: Any) -> EngineManifest:
    requirements = {
        "onnxruntime_min": "1.31",
        "ir_version": 10,
        "opset": 20,
        "targets": ("sm80", "sm90"),
        "min_capability": 80,
        "max_batch_size": 8,
        "max_num_tokens": 64,
    }
    return replace(
        listed_manifest(),
        backend="onnxruntime-cuda",
        backend_requirements=OnnxRuntimeCudaRequirements(**{**requirements, **changes}),
        ranks=(replace(listed_manifest().ranks[0], network_sha256=SHA256),),
    )


def test_a_manifest_of_onnxruntime_cuda_comes_back() -> None:
    for changes in ({}, {"targets": ("portable",), "onnxruntime_min": "2.0"}):
        manifest = cuda_manifest(**changes)
        assert parse_manifest(manifest.to_json(), "engine.json") == manifest


@pytest.mark.parametrize(
    ("place", "value", "text"),
    [
        ("onnxruntime_min", "", f'backend_requirements.onnxruntime_min must be {NAME}, got ""'),
        ("ir_version", 0, "backend_requirements.ir_version must be at least 1, got 0"),
        ("opset", ..., "backend_requirements.opset is missing"),
        ("targets", [], "backend_requirements.targets must be one or more different names"),
        ("targets", ["sm80", "sm80"], "backend_requirements.targets must be one or more different names"),
        ("targets", ["sm 80"], f'backend_requirements.targets[0] must be {NAME}, got "sm 80"'),
        ("min_capability", "80", "backend_requirements.min_capability must be an integer, got a string"),
        ("max_batch_size", 0, "backend_requirements.max_batch_size must be at least 1, got 0"),
        ("max_num_tokens", ..., "backend_requirements.max_num_tokens is missing"),
    ],
)
def test_rules_of_onnxruntime_cudas_requirements(place: str, value: object, text: str) -> None:
    document = json.loads(cuda_manifest().to_json())
    if value is ...:
        del document["backend_requirements"][place]
    else:
        document["backend_requirements"][place] = value
    assert refusal(json.dumps(document).encode(), ANY_RUNTIME) == f"engine.json: {text}"


def test_weights_for_onnxruntime_cuda_lie_beside_the_graph() -> None:
    """Unlike a plan of TensorRT's, the graph never holds them."""
    document = json.loads(cuda_manifest().to_json())
    document["ranks"][0] |= {"weights": None, "network_sha256": None}
    assert refusal(json.dumps(document).encode(), ANY_RUNTIME) == (
        "engine.json: ranks[0].weights must be a path on the backend onnxruntime-cuda, got null"
    )
    with pytest.raises(ValueError, match=r"^backend_requirements must be those of the backend tensorrt$"):
        replace(cuda_manifest(), backend="tensorrt")
