"""What the user of a build chooses. Everything else follows from the checkpoint."""

from dataclasses import dataclass

from precast.checkpoints.ranks.mapping import MAX_PARALLEL_SIZE

WEIGHT_DTYPES = ("auto", "float32", "bfloat16", "float16")
KV_CACHE_DTYPES = ("auto", "float32", "bfloat16")


@dataclass(frozen=True)
class BuildConfig:
    """Options of one build.

    Attributes:
        dtype: of the stored weights. "auto" takes the checkpoint's. "float16" is stored as bfloat16, which the
            manifest's notes say.
        kv_cache_dtype: of the stored keys and values. "auto" is float32 for float32 weights, else bfloat16.
        tokens_per_block: tokens that one block of the KV pool holds; a multiple of 16.
        max_seq_len: longest sequence (prompt and output) in tokens; None takes the model's own limit.
        tensor_parallel_size: ranks that share every layer. None: what the checkpoint's files were made for, else 1.
        pipeline_parallel_size: stages that the layers are divided into; None as above.
    """

    dtype: str = "auto"
    kv_cache_dtype: str = "auto"
    tokens_per_block: int = 16
    max_seq_len: int | None = None
    tensor_parallel_size: int | None = None
    pipeline_parallel_size: int | None = None

    def __post_init__(self) -> None:
        _check_choice("dtype", self.dtype, WEIGHT_DTYPES)
        _check_choice("kv_cache_dtype", self.kv_cache_dtype, KV_CACHE_DTYPES)
        if self.tokens_per_block < 16 or self.tokens_per_block % 16:
            raise ValueError(f"tokens_per_block must be a positive multiple of 16, not {self.tokens_per_block}")
        if self.max_seq_len is not None and self.max_seq_len < 1:
            raise ValueError(f"max_seq_len must be at least 1, not {self.max_seq_len}")
        for field in ("tensor_parallel_size", "pipeline_parallel_size"):
            size = getattr(self, field)
            if size is not None and not 1 <= size <= MAX_PARALLEL_SIZE:
                raise ValueError(f"{field} must be from 1 to {MAX_PARALLEL_SIZE}, not {size}")


def _check_choice(field: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{field} must be one of {', '.join(choices)}, not {value!r}")
