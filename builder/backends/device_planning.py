"""What builds for GPUs decide alike, and refuse, before anything is read.

`title` is what a sentence calls the way to run on a GPU: "TensorRT", or "device cuda".
"""

from importlib import metadata

from precast.builder.build_config import BuildConfig
from precast.builder.errors import BuildError
from precast.checkpoints.model_config import AttentionConfig, ModelConfig
from precast.plugins.paged_attention.device.kernels import MAX_HEAD_DIM, MAX_QUERIES_PER_KV

DTYPES = ("bfloat16", "float16")
DEFAULT_BATCH_SIZE = 256
DEFAULT_NUM_TOKENS = 8192


def plan_step_limits(config: BuildConfig) -> tuple[int, int]:
    """Most sequences and most tokens of a step, in which each sequence has a token."""
    batch, tokens = config.max_batch_size, config.max_num_tokens
    if batch is not None and tokens is not None and batch > tokens:
        raise BuildError(f"max_batch_size {batch} exceeds max_num_tokens {tokens}: each sequence of a step has a token")
    batch = batch or min(DEFAULT_BATCH_SIZE, tokens or DEFAULT_BATCH_SIZE)
    return batch, tokens or max(DEFAULT_NUM_TOKENS, batch)


def plan_dtypes(model: ModelConfig, config: BuildConfig, title: str) -> tuple[str, str, tuple[str, ...]]:
    """The dtype of weights and activations, that of keys and values, and notes.

    Raises:
        BuildError: engines for GPUs have no such dtype.
    """
    notes: tuple[str, ...] = ()
    dtype = model.dtype if config.dtype == "auto" else config.dtype
    if dtype not in DTYPES:
        if config.dtype != "auto":
            raise BuildError(f"dtype {dtype} is not available on {title}; {' and '.join(DTYPES)} are")
        notes = (f"{dtype} checkpoint stored as bfloat16",)
        dtype = "bfloat16"
    if config.kv_cache_dtype not in ("auto", dtype):
        raise BuildError(
            f"kv_cache_dtype {config.kv_cache_dtype} is not available on {title} with dtype {dtype}; {dtype} is"
        )
    return dtype, dtype, notes


def find_kernel_compiler(backend: str, extra: str) -> str:
    """Name and version of what compiles our kernels.

    Raises:
        ModuleNotFoundError: it is not installed; the message says that the extra installs it.
    """
    try:
        return f"triton {metadata.version('triton')}"
    except metadata.PackageNotFoundError as error:
        raise ModuleNotFoundError(
            f"building an engine for {backend} needs Triton, which compiles its kernels and is not installed: "
            f"pip install 'precast[{extra}]'",
            name="triton",
        ) from error


def check_attention(model: ModelConfig, title: str) -> None:
    """Raise BuildError where the kernels of PagedAttention cannot do what a layer has."""
    for index, layer in enumerate(model.layers):
        mixer = layer.mixer
        if not isinstance(mixer, AttentionConfig):
            continue
        for name, value, most in (
            ("head_dim", mixer.head_dim, MAX_HEAD_DIM),
            ("num_heads / num_kv_heads", mixer.num_heads // mixer.num_kv_heads, MAX_QUERIES_PER_KV),
        ):
            if value > most:
                raise BuildError(f"layers.{index}.mixer: {name} {value} is not available on {title}; up to {most} is")
