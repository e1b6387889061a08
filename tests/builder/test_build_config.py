import pytest

from precast.builder.build_config import BuildConfig


def test_defaults() -> None:
    assert BuildConfig() == BuildConfig("auto", "auto", 16, None)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("dtype", "int8", "dtype must be one of auto, float32, bfloat16, float16, not 'int8'"),
        ("kv_cache_dtype", "int8", "kv_cache_dtype must be one of auto, float32, bfloat16, float16, not 'int8'"),
        ("weights", "outside", "weights must be one of inside, separate, not 'outside'"),
        ("max_batch_size", 0, "max_batch_size must be from 1 to 2147483646, not 0"),
        ("max_num_tokens", 2**31, "max_num_tokens must be from 1 to 2147483646, not 2147483648"),
        ("target", (), "target must name at least one GPU, such as sm89, or be left out"),
        ("tokens_per_block", 0, "tokens_per_block must be a positive multiple of 16, not 0"),
        ("tokens_per_block", 24, "tokens_per_block must be a positive multiple of 16, not 24"),
        ("tokens_per_block", -16, "tokens_per_block must be a positive multiple of 16, not -16"),
        ("max_seq_len", 0, "max_seq_len must be at least 1, not 0"),
    ],
)
def test_bad_values_are_refused_at_birth(field: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        BuildConfig(**{field: value})  # type: ignore[arg-type]
