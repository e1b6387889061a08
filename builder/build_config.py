"""What the user of a build chooses. Everything else follows from the checkpoint."""

from dataclasses import dataclass

from precast.checkpoints.ranks.mapping import MAX_PARALLEL_SIZE

WEIGHT_DTYPES = ("auto", "float32", "bfloat16", "float16")
KV_CACHE_DTYPES = ("auto", "float32", "bfloat16", "float16")
MAX_STEP_SIZE = (1 << 31) - 2
"""Of an axis that counts sequences or tokens: one more must be an int32 still."""
WEIGHTS_PLACES = ("inside", "separate")


@dataclass(frozen=True)
class BuildConfig:
    """Options of one build.

    Attributes:
        dtype: of the stored weights. "auto" takes the checkpoint's. On the CPU "float16" is stored as bfloat16, and on
            TensorRT a float32 checkpoint, which the manifest's notes say.
        kv_cache_dtype: of the stored keys and values. "auto" is the dtype of the weights.
        tokens_per_block: tokens that one block of the KV pool holds; a multiple of 16.
        max_seq_len: longest sequence (prompt and output) in tokens; None takes the model's own limit.
        tensor_parallel_size: ranks that share every layer. None: what the checkpoint's files were made for, else 1.
        pipeline_parallel_size: stages that the layers are divided into; None as above.

    For engines that run on GPUs only; target, quantization, group_size and weights are explained in docs/tensorrt.md:
        target: GPUs that the engine is for, such as ("sm89", "sm120"), or ("portable",). None: the library's default.
        quantization: of the layers' matrices, a name in quantize.formats; None: none.
        group_size: columns that share a scale, where the format leaves that open.
        weights: "inside" the plan, or "separate" beside it, so that `refit` can exchange them.
        max_batch_size: most sequences of a step; None: 256.
        max_num_tokens: most tokens of a step; None: 8192.
        layer_outputs: what layers give is an output of the network, too, for who compares two ways to run it.
    """

    dtype: str = "auto"
    kv_cache_dtype: str = "auto"
    tokens_per_block: int = 16
    max_seq_len: int | None = None
    tensor_parallel_size: int | None = None
    pipeline_parallel_size: int | None = None
    target: tuple[str, ...] | None = None
    quantization: str | None = None
    group_size: int | None = None
    weights: str = "inside"
    max_batch_size: int | None = None
    max_num_tokens: int | None = None
    layer_outputs: bool = False

    def __post_init__(self) -> None:
        _check_choice("dtype", self.dtype, WEIGHT_DTYPES)
        _check_choice("kv_cache_dtype", self.kv_cache_dtype, KV_CACHE_DTYPES)
        if self.tokens_per_block < 16 or self.tokens_per_block % 16:
            raise ValueError(f"tokens_per_block must be a positive multiple of 16, not {self.tokens_per_block}")
        if self.max_seq_len is not None and self.max_seq_len < 1:
            raise ValueError(f"max_seq_len must be at least 1, not {self.max_seq_len}")
        _check_choice("weights", self.weights, WEIGHTS_PLACES)
        for field in ("group_size", "max_batch_size", "max_num_tokens"):
            value = getattr(self, field)
            if value is not None and not 1 <= value <= MAX_STEP_SIZE:
                raise ValueError(f"{field} must be from 1 to {MAX_STEP_SIZE}, not {value}")
        if self.target is not None and not self.target:
            raise ValueError("target must name at least one GPU, such as sm89, or be left out")
        for field in ("tensor_parallel_size", "pipeline_parallel_size"):
            size = getattr(self, field)
            if size is not None and not 1 <= size <= MAX_PARALLEL_SIZE:
                raise ValueError(f"{field} must be from 1 to {MAX_PARALLEL_SIZE}, not {size}")


def _check_choice(field: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{field} must be one of {', '.join(choices)}, not {value!r}")
