"""engine.json: bytes -> EngineManifest, in the order and with the words of runtime/native/src/engine_manifest.cpp."""

from collections.abc import Callable
from dataclasses import dataclass

from precast.checkpoints.engine_checks import check_name
from precast.checkpoints.engine_errors import UnsupportedEngineError
from precast.checkpoints.engine_json import JsonCursor, parse_json
from precast.checkpoints.engine_kv import KvCacheSpec, KvGroupSpec
from precast.checkpoints.engine_manifest import (
    BACKEND_REQUIREMENTS,
    ENGINE_FORMAT,
    BackendRequirements,
    BuildInfo,
    EngineManifest,
    FileEntry,
    ModelInfo,
    OnnxRuntimeCudaRequirements,
    OnnxRuntimeRequirements,
    RankFiles,
    TensorRtRequirements,
)
from precast.checkpoints.ranks.mapping import Mapping
from precast.version import __version__

KNOWN_BACKENDS = tuple(BACKEND_REQUIREMENTS)


@dataclass(frozen=True)
class RuntimeSupport:
    """What a runtime can run, as far as a manifest can tell."""

    supports: Callable[[str], bool]
    """Whether it knows a name of the manifest's `requires`."""
    backends: tuple[str, ...] = ("onnxruntime",)
    max_world_size: int = 1


ANY_RUNTIME = RuntimeSupport(supports=lambda _: True, backends=KNOWN_BACKENDS, max_world_size=1 << 31)
"""Refuses nothing that can be read: for inspecting, copying and verifying engines that this machine need not run."""


def parse_manifest(data: bytes, source: str, support: RuntimeSupport = ANY_RUNTIME) -> EngineManifest:
    """Read and check the bytes of engine.json, without touching the file system.

    In this order: JSON, format, backend, requires, mapping, the rest. Members that format 1 does not name are ignored.
    `source` names the document in messages.

    Raises CorruptEngineError, UnsupportedEngineError.
    """
    root = JsonCursor(parse_json(data, source), source)
    _check_format(root)
    backend = _read_backend(root, support)
    requires = _read_requires(root, support)
    mapping = _read_mapping(root, support)
    manifest = root.create(
        EngineManifest,
        requires=requires,
        backend=backend,
        mapping=mapping,
        precast_version=_read_name(root.at("precast_version")),
        backend_requirements=_read_backend_requirements(root.at("backend_requirements"), backend),
        batch_invariant=root.at("batch_invariant").boolean(),
        reproducible=root.at("reproducible").boolean(),
        model=_read_model(root.at("model")),
        build=_read_build(root.at("build")),
        files={path: _read_file_entry(entry) for path, entry in root.at("files").members()},
        ranks=tuple(_read_rank(rank) for rank in root.at("ranks").elements()),
    )
    root.create(manifest.check_listed)
    return manifest


def _check_format(root: JsonCursor) -> None:
    value = root.at("format")
    engine_format = value.integer()
    if engine_format < 1:
        raise value.error(f"be at least 1, got {engine_format}")
    if engine_format == ENGINE_FORMAT:
        return
    writer = root.find("precast_version")
    by = f" of precast {_read_name(writer)}" if writer else ""
    raise UnsupportedEngineError(
        f"{root.source}: engine format {engine_format}{by} is newer than format {ENGINE_FORMAT}, which this precast "
        f"{__version__} reads: update precast, or rebuild the engine with this version"
    )


def _read_name(value: JsonCursor) -> str:
    text = value.string()
    try:
        check_name(value.path, text)
    except ValueError as error:
        raise value.error(str(error).removeprefix(f"{value.path} must ")) from error
    return text


def _read_requires(root: JsonCursor, support: RuntimeSupport) -> tuple[str, ...]:
    names = tuple(_read_name(element) for element in root.at("requires").elements())
    unknown = [name for name in names if not support.supports(name)]
    if unknown:
        raise UnsupportedEngineError(
            f"{root.source}: the engine requires {', '.join(unknown)}, which this precast {__version__} does not have: "
            "update precast, or rebuild the engine with this version"
        )
    return names


def _read_backend(root: JsonCursor, support: RuntimeSupport) -> str:
    backend = _read_name(root.at("backend"))
    if backend not in support.backends:
        raise UnsupportedEngineError(
            f"{root.source}: the engine was built for the backend {backend}, this runtime has "
            f"{', '.join(support.backends)}: rebuild the engine for one of these"
        )
    return backend


def _read_mapping(root: JsonCursor, support: RuntimeSupport) -> Mapping:
    value = root.at("mapping")
    mapping = value.create(
        Mapping,
        world_size=value.at("world_size").integer(),
        tensor_parallel_size=value.at("tensor_parallel_size").integer(),
        pipeline_parallel_size=value.at("pipeline_parallel_size").integer(),
    )
    if mapping.world_size > support.max_world_size:
        raise UnsupportedEngineError(
            f"{root.source}: the engine was built for {mapping.world_size} ranks, this runtime runs at most "
            f"{support.max_world_size}: rebuild the engine for fewer"
        )
    return mapping


def _read_backend_requirements(value: JsonCursor, backend: str) -> BackendRequirements:
    return _REQUIREMENTS_READERS[backend](value)


def _read_tensorrt_requirements(value: JsonCursor) -> TensorRtRequirements:
    return value.create(
        TensorRtRequirements,
        library=value.at("library").string(),
        library_version=value.at("library_version").string(),
        targets=tuple(element.string() for element in value.at("targets").elements()),
        min_capability=value.at("min_capability").integer(),
        quantization=value.at("quantization").string_or_none(),
        max_batch_size=value.at("max_batch_size").integer(),
        max_num_tokens=value.at("max_num_tokens").integer(),
    )


def _read_onnxruntime_requirements(value: JsonCursor) -> OnnxRuntimeRequirements:
    return value.create(
        OnnxRuntimeRequirements,
        onnxruntime_min=value.at("onnxruntime_min").string(),
        ir_version=value.at("ir_version").integer(),
        opset=value.at("opset").integer(),
    )


def _read_onnxruntime_cuda_requirements(value: JsonCursor) -> OnnxRuntimeCudaRequirements:
    return value.create(
        OnnxRuntimeCudaRequirements,
        onnxruntime_min=value.at("onnxruntime_min").string(),
        ir_version=value.at("ir_version").integer(),
        opset=value.at("opset").integer(),
        targets=tuple(element.string() for element in value.at("targets").elements()),
        min_capability=value.at("min_capability").integer(),
        max_batch_size=value.at("max_batch_size").integer(),
        max_num_tokens=value.at("max_num_tokens").integer(),
    )


_REQUIREMENTS_READERS: dict[str, Callable[[JsonCursor], BackendRequirements]] = {
    "onnxruntime": _read_onnxruntime_requirements,
    "onnxruntime-cuda": _read_onnxruntime_cuda_requirements,
    "tensorrt": _read_tensorrt_requirements,
}


def _read_model(value: JsonCursor) -> ModelInfo:
    return value.create(
        ModelInfo,
        architecture=value.at("architecture").string(),
        vocab_size=value.at("vocab_size").integer(),
        hidden_size=value.at("hidden_size").integer(),
        num_layers=value.at("num_layers").integer(),
        max_seq_len=value.at("max_seq_len").integer(),
        bos_token_id=value.at("bos_token_id").integer_or_none(),
        eos_token_ids=tuple(element.integer() for element in value.at("eos_token_ids").elements()),
        pad_token_id=value.at("pad_token_id").integer_or_none(),
    )


def _read_build(value: JsonCursor) -> BuildInfo:
    return value.create(
        BuildInfo,
        dtype=value.at("dtype").string(),
        kv_cache_dtype=value.at("kv_cache_dtype").string(),
        tokens_per_block=value.at("tokens_per_block").integer(),
        max_seq_len=value.at("max_seq_len").integer_or_none(),
        notes=tuple(element.string() for element in value.at("notes").elements()),
    )


def _read_file_entry(value: JsonCursor) -> FileEntry:
    return value.create(FileEntry, size=value.at("size").integer(), sha256=value.at("sha256").string())


def _read_rank(value: JsonCursor) -> RankFiles:
    return value.create(
        RankFiles,
        graph=value.at("graph").string(),
        weights=value.at("weights").string_or_none(),
        kv_groups=tuple(_read_kv_group(group) for group in value.at("kv_groups").elements()),
        kv_caches=tuple(_read_kv_cache(cache) for cache in value.at("kv_caches").elements()),
        network_sha256=network.string_or_none() if (network := value.find("network_sha256")) else None,
    )


def _read_kv_group(value: JsonCursor) -> KvGroupSpec:
    return value.create(
        KvGroupSpec,
        block_tables=value.at("block_tables").string(),
        window=value.at("window").integer_or_none(),
    )


def _read_kv_cache(value: JsonCursor) -> KvCacheSpec:
    return value.create(
        KvCacheSpec,
        name=value.at("name").string(),
        layout=value.at("layout").string(),
        block_bytes=value.at("block_bytes").integer(),
        group=value.at("group").integer(),
    )
