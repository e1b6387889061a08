"""engine.json, the manifest of an engine directory, as frozen dataclasses. docs/engine_format.md is the authority.

The classes check themselves when they are made (ValueError, "field must ..."), so a builder cannot write what a reader
would refuse. engine_manifest_reader.py makes them from bytes, and says the same under the file's name.
"""

import json
from dataclasses import asdict, dataclass
from typing import Any

from precast.checkpoints.engine_checks import check_name, check_range, is_path_inside
from precast.checkpoints.engine_errors import quote
from precast.checkpoints.engine_kv import KvCacheSpec, KvGroupSpec, check_kv, check_ranks_kv
from precast.checkpoints.ranks.mapping import Mapping
from precast.version import __version__

ENGINE_FORMAT = 1
MANIFEST_NAME = "engine.json"
VERIFICATION_NAME = "verification.json"
UNLISTED_NAMES = (MANIFEST_NAME, VERIFICATION_NAME)  # never in `files`

_MAX_INT64 = (1 << 63) - 1


def check_sha256(field: str, digits: str) -> None:
    """Raise ValueError unless it is a SHA-256 as 64 lower-case hexadecimal digits."""
    if len(digits) != 64 or not all(digit in "0123456789abcdef" for digit in digits):
        raise ValueError(f"{field} must be 64 lower-case hexadecimal digits, got {quote(digits)}")


@dataclass(frozen=True)
class ModelInfo:
    """What a runtime and its callers need to know of the model."""

    architecture: str
    """Hugging Face's name, e.g. "LlamaForCausalLM"."""
    vocab_size: int
    """Columns of the logits."""
    hidden_size: int
    num_layers: int
    max_seq_len: int
    """Most tokens of a sequence, prompt and generated together."""
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    """Any of them ends a sequence; may be empty."""
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        check_name("architecture", self.architecture)
        for field in ("vocab_size", "hidden_size", "num_layers", "max_seq_len"):
            check_range(field, getattr(self, field), 1)
        for i, token_id in enumerate(self.eos_token_ids):
            check_range(f"eos_token_ids[{i}]", token_id, 0)
        for field in ("bos_token_id", "pad_token_id"):
            if getattr(self, field) is not None:
                check_range(field, getattr(self, field), 0)


@dataclass(frozen=True)
class BuildInfo:
    """The build options, after every "auto" has been decided."""

    dtype: str
    """Of the weights: "float32", "bfloat16", ..."""
    kv_cache_dtype: str
    tokens_per_block: int
    max_seq_len: int | None = None
    """The option as it was given; None where the model's own limit was taken."""
    notes: tuple[str, ...] = ()
    """Sentences for people, e.g. "float16 checkpoint stored as bfloat16"."""

    def __post_init__(self) -> None:
        check_name("dtype", self.dtype)
        check_name("kv_cache_dtype", self.kv_cache_dtype)
        check_range("tokens_per_block", self.tokens_per_block, 1)
        if self.max_seq_len is not None:
            check_range("max_seq_len", self.max_seq_len, 1)


@dataclass(frozen=True)
class RankFiles:
    """The files of one rank: paths relative to the engine directory, listed in the manifest's `files`."""

    graph: str
    weights: str | None
    """None where the graph file holds the weights."""
    kv_groups: tuple[KvGroupSpec, ...]
    """Of the whole model, the same on every rank: the one without a window first, then ascending in the window. Empty
    for a model without attention."""
    kv_caches: tuple[KvCacheSpec, ...]
    """In the order of the graph's inputs."""
    network_sha256: str | None = None
    """Of the network without its weights, where these are beside it: weights of an equal network fit."""

    def __post_init__(self) -> None:
        if self.network_sha256 is not None:
            check_sha256("network_sha256", self.network_sha256)
            if self.weights is None:
                raise ValueError("network_sha256 must be absent where weights is null")
        check_kv(self.kv_groups, self.kv_caches)


@dataclass(frozen=True)
class FileEntry:
    """A file of the engine: its size in bytes and its SHA-256 as 64 lower-case hexadecimal digits."""

    size: int
    sha256: str

    def __post_init__(self) -> None:
        check_sha256("sha256", self.sha256)
        check_range("size", self.size, 0, _MAX_INT64)


@dataclass(frozen=True)
class OnnxRuntimeRequirements:
    """What the graphs need of ONNX Runtime."""

    onnxruntime_min: str
    """Oldest release that runs them, e.g. "1.23"."""
    ir_version: int
    opset: int

    def __post_init__(self) -> None:
        check_name("onnxruntime_min", self.onnxruntime_min)
        check_range("ir_version", self.ir_version, 1)
        check_range("opset", self.opset, 1)


TENSORRT_LIBRARIES = ("tensorrt_rtx", "tensorrt")


@dataclass(frozen=True)
class TensorRtRequirements:
    """What the plans need of TensorRT and of the GPU."""

    library: str
    """"tensorrt_rtx" or "tensorrt"."""
    library_version: str
    """Plans of tensorrt_rtx load in this version only."""
    targets: tuple[str, ...]
    """GPUs that the plans were built for, e.g. "sm89"; or "portable", or "current"."""
    min_capability: int
    """Least compute capability of the GPU: 89 is 8.9."""
    quantization: str | None
    """Format of the layers' matrices, e.g. "int4"; None: build.dtype."""
    max_batch_size: int
    """Most sequences of a step."""
    max_num_tokens: int
    """Most tokens of a step."""

    def __post_init__(self) -> None:
        if self.library not in TENSORRT_LIBRARIES:
            raise ValueError(f"library must be {' or '.join(TENSORRT_LIBRARIES)}, got {quote(self.library)}")
        check_name("library_version", self.library_version)
        _check_targets(self.targets)
        if self.quantization is not None:
            check_name("quantization", self.quantization)
        for field in ("min_capability", "max_batch_size", "max_num_tokens"):
            check_range(field, getattr(self, field), 1)


@dataclass(frozen=True)
class OnnxRuntimeCudaRequirements:
    """What the graphs need of ONNX Runtime with its CUDA provider, and of the GPU."""

    onnxruntime_min: str
    """Oldest release that runs them, e.g. "1.31"."""
    ir_version: int
    opset: int
    targets: tuple[str, ...]
    """GPUs that kernels were compiled for, e.g. "sm90"; or "portable"."""
    min_capability: int
    """Least compute capability of the GPU: 80 is 8.0."""
    max_batch_size: int
    """Most sequences of a step."""
    max_num_tokens: int
    """Most tokens of a step."""

    def __post_init__(self) -> None:
        check_name("onnxruntime_min", self.onnxruntime_min)
        _check_targets(self.targets)
        for field in ("ir_version", "opset", "min_capability", "max_batch_size", "max_num_tokens"):
            check_range(field, getattr(self, field), 1)


def _check_targets(targets: tuple[str, ...]) -> None:
    if not targets or len(set(targets)) != len(targets):
        raise ValueError("targets must be one or more different names")
    for i, target in enumerate(targets):
        check_name(f"targets[{i}]", target)


BackendRequirements = OnnxRuntimeRequirements | OnnxRuntimeCudaRequirements | TensorRtRequirements
BACKEND_REQUIREMENTS: dict[str, type[BackendRequirements]] = {
    "onnxruntime": OnnxRuntimeRequirements,
    "onnxruntime-cuda": OnnxRuntimeCudaRequirements,
    "tensorrt": TensorRtRequirements,
}
"""The backends that format 1 describes."""


@dataclass(frozen=True)
class EngineManifest:
    """engine.json. `files` is empty until the engine's writer has listed them."""

    requires: tuple[str, ...]
    """Versioned ops and layouts that a runtime must know, e.g. "ai.precast.Linear/1", "x16k2.bf16/1"."""
    backend: str
    backend_requirements: BackendRequirements
    batch_invariant: bool
    """Whether a request's tokens are the same bits whatever runs beside it."""
    reproducible: bool
    """Whether the same inputs build the same bytes."""
    model: ModelInfo
    build: BuildInfo
    mapping: Mapping
    ranks: tuple[RankFiles, ...]
    files: dict[str, FileEntry]
    """Path, relative with '/' between components, -> entry. Every file but engine.json and verification.json."""
    precast_version: str = __version__
    """Of the builder."""

    def __post_init__(self) -> None:
        check_name("precast_version", self.precast_version)
        check_name("backend", self.backend)
        if not isinstance(self.backend_requirements, BACKEND_REQUIREMENTS.get(self.backend, object)):
            raise ValueError(f"backend_requirements must be those of the backend {self.backend}")
        for i, name in enumerate(self.requires):
            check_name(f"requires[{i}]", name)
        for path in self.files:
            if not is_path_inside(path):
                raise ValueError(
                    f"files[{quote(path)}] must have a relative path inside the engine directory as its name"
                )
            if path in UNLISTED_NAMES:
                raise ValueError(f"files[{quote(path)}] must not be listed")
        if len(self.ranks) != self.mapping.world_size:
            raise ValueError(
                f"ranks must have mapping.world_size = {self.mapping.world_size} elements, got {len(self.ranks)}"
            )
        check_ranks_kv([(rank.kv_groups, rank.kv_caches) for rank in self.ranks])

    def check_listed(self) -> None:
        """Raise ValueError where a rank names a file that `files` lacks."""
        for i, rank in enumerate(self.ranks):
            for field, path in (("graph", rank.graph), ("weights", rank.weights)):
                if path is None:
                    if self.backend != "tensorrt":
                        raise ValueError(f"ranks[{i}].{field} must be a path on the backend {self.backend}, got null")
                elif path not in self.files:
                    raise ValueError(f"ranks[{i}].{field} must be a path listed in files, got {quote(path)}")

    def to_document(self) -> dict[str, Any]:
        """The members of engine.json but for `format`; those that are optional and None are left out."""
        document = asdict(self)
        for rank in document["ranks"]:
            if rank["network_sha256"] is None:
                del rank["network_sha256"]
        return document

    def to_json(self) -> bytes:
        """The bytes of engine.json: sorted members, so that equal manifests are equal bytes."""
        document = {"format": ENGINE_FORMAT, **self.to_document()}
        text = json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
        return text.encode("utf-8") + b"\n"
