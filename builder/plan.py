"""The plan of a build: every "auto" decided, before anything is emitted."""

import logging
from dataclasses import dataclass

from precast.builder.build_config import BuildConfig
from precast.builder.errors import BuildError
from precast.checkpoints.model_config import AttentionConfig, ModelConfig
from precast.checkpoints.ranks.mapping import Mapping
from precast.checkpoints.ranks.partition import Partition, plan_partition
from precast.checkpoints.rope import DynamicScaling, LongRopeScaling, RopeScaling

WEIGHT_LAYOUTS = {"float32": "x16k1.f32/1", "bfloat16": "x16k2.bf16/1"}
KV_LAYOUTS = {"float32": "kv16.f32/1", "bfloat16": "kv16.bf16/1"}
DEVICE_WEIGHT_LAYOUTS = {"bfloat16": "dense.bf16/1", "float16": "dense.f16/1"}
DEVICE_KV_LAYOUTS = {"bfloat16": "kvrow.bf16/1", "float16": "kvrow.f16/1"}
DEVICE_OPTIONS = (
    "target",
    "quantization",
    "group_size",
    "weights",
    "max_batch_size",
    "max_num_tokens",
    "layer_outputs",
)
"""Fields of BuildConfig that have no meaning on CPUs. A DevicePlan says what follows from each of them."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DevicePlan:
    """What an engine for GPUs is built with.

    Attributes:
        library: What runs the network: the import name of TensorRT, or "onnxruntime".
        library_version: Plans of TensorRT-RTX load in no other; of ONNX Runtime it is the oldest.
        kernel_compiler: Name and version of what compiles our kernels.
        targets: See backends/tensorrt/targets.py and backends/onnxruntime_cuda/planning.py.
        min_capability: The least compute capability of a GPU that runs the engine: 89 is 8.9.
        quantization: A name in quantize.formats, or None.
        separate_weights: Weights are inputs of the network, and lie beside it.
        max_batch_size: Most sequences of a step.
        max_num_tokens: Most tokens of a step.
        layer_outputs: What layers give is an output of the network, too.
    """

    library: str
    library_version: str
    kernel_compiler: str
    targets: tuple[str, ...]
    min_capability: int
    quantization: str | None
    separate_weights: bool
    max_batch_size: int
    max_num_tokens: int
    layer_outputs: bool = False


@dataclass(frozen=True)
class BuildPlan:
    """What every rank of the engine is built with.

    Attributes:
        dtype: Of weights, a key of the backend's weight layouts.
        kv_cache_dtype: A key of the backend's KV layouts.
        max_seq_len: Most tokens of a sequence.
        notes: Sentences for people: what differs from what they may expect.
        device: None for CPUs.
    """

    dtype: str
    kv_cache_dtype: str
    tokens_per_block: int
    max_seq_len: int
    notes: tuple[str, ...] = ()
    device: DevicePlan | None = None

    @property
    def weight_layout(self) -> str:
        return (WEIGHT_LAYOUTS if self.device is None else DEVICE_WEIGHT_LAYOUTS)[self.dtype]

    @property
    def kv_layout(self) -> str:
        return (KV_LAYOUTS if self.device is None else DEVICE_KV_LAYOUTS)[self.kv_cache_dtype]

    def effective_window(self, window: int | None) -> int | None:
        """The window of an attention layer, None where no sequence is long enough to leave it."""
        return None if window is None or window >= self.max_seq_len else window


def plan_build(model: ModelConfig, config: BuildConfig, backend: str = "onnxruntime") -> BuildPlan:
    """Decide what the build config leaves open, and say once what was changed.

    Raises:
        BuildError: the model or the backend cannot do what the config asks.
        ModuleNotFoundError: what the backend builds with is not installed.
    """
    device = None
    if backend == "tensorrt":
        from precast.builder.backends.device_planning import plan_dtypes
        from precast.builder.backends.tensorrt.planning import TITLE, plan_tensorrt

        dtype, kv_cache_dtype, notes = plan_dtypes(model, config, TITLE)
        device = plan_tensorrt(model, config)
    elif backend == "onnxruntime-cuda":
        from precast.builder.backends.device_planning import plan_dtypes
        from precast.builder.backends.onnxruntime_cuda.planning import TITLE, plan_cuda

        dtype, kv_cache_dtype, notes = plan_dtypes(model, config, TITLE)
        device = plan_cuda(model, config)
    else:
        _check_cpu_options(config)
        dtype, notes = _weight_dtype(model, config)
        kv_cache_dtype = dtype if config.kv_cache_dtype == "auto" else config.kv_cache_dtype
    max_seq_len = check_max_seq_len(model, config)
    notes += rope_notes(model, max_seq_len)
    for note in notes:
        _logger.warning(note)
    return BuildPlan(dtype, kv_cache_dtype, config.tokens_per_block, max_seq_len, notes, device)


def plan_ranks(
    model: ModelConfig, config: BuildConfig, stored: Partition | None, backend: str = "onnxruntime"
) -> Partition:
    """How the model is spread over ranks: as the config asks, else as the checkpoint's files are (`stored`).

    Raises:
        BuildError: the backend cannot build what a rank has.
        PartitionError: the model cannot be divided so.
    """
    partition = _partition(model, config, stored)
    if backend == "tensorrt":
        from precast.builder.backends.tensorrt.planning import check_ranks

        check_ranks(model, config, partition)
    return partition


def _partition(model: ModelConfig, config: BuildConfig, stored: Partition | None) -> Partition:
    default = Mapping() if stored is None else stored.mapping
    mapping = Mapping.of(
        config.tensor_parallel_size or default.tensor_parallel_size,
        config.pipeline_parallel_size or default.pipeline_parallel_size,
    )
    return stored if stored is not None and mapping == stored.mapping else plan_partition(model, mapping)


def _check_cpu_options(config: BuildConfig) -> None:
    defaults = BuildConfig()
    for name in DEVICE_OPTIONS:
        value = getattr(config, name)
        if value != getattr(defaults, name):
            given = ",".join(value) if isinstance(value, tuple) else value
            raise BuildError(
                f"{name} {given} has no meaning on CPUs: leave it out, or build for GPUs, with the backend tensorrt or "
                "device cuda"
            )
    if config.kv_cache_dtype == "float16":
        raise BuildError("kv_cache_dtype float16 is not available on CPUs; float32 and bfloat16 are")


def _weight_dtype(model: ModelConfig, config: BuildConfig) -> tuple[str, tuple[str, ...]]:
    """The stored dtype, and a note where it is not the one asked for: there are no float16 kernels."""
    if config.dtype == "auto" and model.dtype == "float16":
        return "bfloat16", ("float16 checkpoint stored as bfloat16",)
    if config.dtype == "float16":
        return "bfloat16", ("float16 was asked for, weights are stored as bfloat16",)
    return (model.dtype if config.dtype == "auto" else config.dtype), ()


def rope_notes(model: ModelConfig, max_seq_len: int) -> tuple[str, ...]:
    """What differs from transformers where a rotary embedding depends on the length of a sequence."""
    ropes = [layer.mixer.rope for layer in model.layers if isinstance(layer.mixer, AttentionConfig)]
    scalings = dict.fromkeys(rope.scaling for rope in ropes if rope is not None)
    return tuple(note for scaling in scalings if (note := _rope_note(scaling, max_seq_len)) is not None)


def _rope_note(scaling: RopeScaling | None, max_seq_len: int) -> str | None:
    if not isinstance(scaling, DynamicScaling | LongRopeScaling):
        return None
    context = scaling.original_max_position_embeddings
    if max_seq_len <= context:
        return None
    if isinstance(scaling, DynamicScaling):
        return f"beyond {context} tokens, dynamic rope rotates a token as in a sequence that ends with it"
    return f"sequences of {context} tokens and less too are rotated by longrope's long factors"


def check_max_seq_len(model: ModelConfig, config: BuildConfig) -> int:
    """Most tokens of a sequence. Raises BuildError where the config asks for more than the model can."""
    limit = model.max_position_embeddings
    if config.max_seq_len is not None and config.max_seq_len > limit:
        raise BuildError(
            f"max_seq_len {config.max_seq_len} exceeds the model's max_position_embeddings {limit}: "
            f"choose at most {limit}"
        )
    return config.max_seq_len or limit
